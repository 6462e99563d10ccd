"""A mask branch for Sparse R-CNN, from outside of the package: targets, head, loss and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from dynamic_sparse_rcnn import (
    LOSS_REGISTRY,
    BatchedTargets,
    DynamicHead,
    LossTerm,
    Matched,
    SparseRCNN,
    StagePredictions,
)

SIDE = 8


@dataclass(frozen=True, kw_only=True)
class MaskTargets(BatchedTargets):
    masks: Tensor  # (B, G, SIDE, SIDE) bool, within the ground truth's box

    @classmethod
    def from_instances(cls, instances: Sequence[Instances], device: torch.device) -> MaskTargets:
        plain = BatchedTargets.from_instances(instances, device)
        masks = [x.gt_masks.crop_and_resize(x.gt_boxes.tensor, SIDE) for x in instances]
        return cls(**vars(plain), masks=nn.utils.rnn.pad_sequence(masks, batch_first=True).to(device))


@dataclass(frozen=True, kw_only=True)
class MaskPredictions(StagePredictions):
    masks: Tensor  # (S, B, P, SIDE, SIDE) logits


class MaskHead(DynamicHead):
    @configurable
    def __init__(self, *, channels: int, **arguments) -> None:
        super().__init__(**arguments)
        self.masks = nn.ModuleList(nn.Linear(channels, SIDE**2) for _ in self.head_series)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict[str, object]:
        return super().from_config(cfg, input_shape) | {"channels": cfg.MODEL.SparseRCNN.HIDDEN_DIM}

    def predictions_of(self, stage: int, logits: Tensor, boxes: Tensor, features: Tensor) -> MaskPredictions:
        masks = self.masks[stage](features).unflatten(-1, (SIDE, SIDE))
        return MaskPredictions(logits[None], boxes[None], masks=masks[None])


@LOSS_REGISTRY.register()
class MaskLoss(LossTerm):
    name = "loss_mask"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(weight=1.0)

    def forward(self, matched: Matched) -> Tensor:
        assert isinstance(matched.predictions, MaskPredictions) and isinstance(matched.targets, MaskTargets)
        found, wanted = matched.predictions.masks, matched.gather(matched.targets.masks).float()
        loss = F.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean((3, 4))
        return (loss * matched.positive).sum((1, 2))


@META_ARCH_REGISTRY.register()
class MaskSparseRCNN(SparseRCNN):
    head_class, targets_class = MaskHead, MaskTargets

    def further_fields(self, predictions: StagePredictions, proposal: Tensor) -> dict[str, Tensor]:
        assert isinstance(predictions, MaskPredictions)
        index = proposal[..., None, None].expand(-1, -1, SIDE, SIDE)
        return {"pred_masks": predictions.masks[0].sigmoid().gather(1, index)[:, :, None]}
