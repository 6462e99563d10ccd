"""The dynamic head: a cascade of stages that refine proposals."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..structures import StagePredictions
from .stage import ACTIVATIONS, DynamicStage, build_stages


class DynamicHead(nn.Module):
    """The cascade of Sparse R-CNN: each stage pools RoI features at the boxes of the previous stage and refines them.

    A head that predicts more overrides :meth:`predictions_of`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        stages: list[DynamicStage],
        box_transform: Box2BoxTransform,
        prior_probability: float,
        grad_checkpointing: bool = False,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps that ``pooler`` pools from, finest first.
            pooler: returns (B * P, C, R, R) RoI features.
            stages: the S stages, in order.
            box_transform: applies deltas to boxes.
            prior_probability: initial probability of each class for each proposal.
            grad_checkpointing: whether to keep only the inputs of each stage in training, and recompute its activations
                in the backward pass: less memory, more time.
        """
        super().__init__()
        self.in_features = in_features
        self.box_pooler = pooler
        self.head_series = nn.ModuleList(stages)
        self.box_transform = box_transform
        self.grad_checkpointing = grad_checkpointing
        for stage in stages:
            stage.init_weights(prior_probability)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        node = cfg.MODEL.SparseRCNN
        _check_config(cfg, input_shape)
        stage_arguments = {
            "num_classes": node.NUM_CLASSES,
            "channels": node.HIDDEN_DIM,
            "num_attention_heads": node.NHEADS,
            "feedforward_channels": node.DIM_FEEDFORWARD,
            "dynamic_channels": node.DIM_DYNAMIC,
            "pooler_resolution": cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
            "num_class_layers": node.NUM_CLS,
            "num_box_layers": node.NUM_REG,
            "dropout": node.DROPOUT,
            "activation": node.ACTIVATION,
        }
        in_features = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        return {
            "in_features": in_features,
            "pooler": ROIPooler(
                output_size=cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
                scales=[1.0 / input_shape[name].stride for name in in_features],
                sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
                pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
            ),
            "stages": build_stages(node.NUM_HEADS, **stage_arguments),
            "box_transform": Box2BoxTransform(weights=(2.0, 2.0, 1.0, 1.0), scale_clamp=math.log(100000.0 / 16)),
            "prior_probability": node.PRIOR_PROB,
            "grad_checkpointing": node.GRAD_CHECKPOINTING,
        }

    def forward(
        self, features: dict[str, Tensor], proposal_boxes: Tensor, proposal_features: Tensor
    ) -> StagePredictions:
        """Runs all stages.

        Args:
            features: feature maps (B, C, H, W) by name.
            proposal_boxes: (B, P, 4) float32, absolute XYXY pixels of the network input.
            proposal_features: (B, P, C).
        """
        # float32 under autocast too: RoIAlign casts boxes to the type of the maps, and in half precision boxes are off
        # by pixels.
        # Contiguous, or RoIAlign would copy maps of channels last once a stage.
        maps = [features[name].float().contiguous() for name in self.in_features]
        boxes = proposal_boxes
        stages: list[StagePredictions] = []
        for number, stage in enumerate(self.head_series):
            roi_features = self._pool(maps, boxes)
            logits, deltas, proposal_features = self._run(stage, proposal_features, roi_features)
            refined = self._refine(boxes, deltas)
            stages.append(self.predictions_of(number, logits, refined, proposal_features))
            # No gradients between stages through boxes: each stage learns to refine the boxes that it gets.
            boxes = refined.detach()
        return replace(stages[0].cat(*stages[1:]), initial_boxes=proposal_boxes)

    def predictions_of(self, stage: int, logits: Tensor, boxes: Tensor, features: Tensor) -> StagePredictions:
        """Returns the predictions of one stage, with S = 1. Subclasses that predict more override this.

        Args:
            stage: index of the stage, from 0.
            logits: (B, P, K) class logits.
            boxes: (B, P, 4) refined boxes, absolute XYXY pixels.
            features: (B, P, C) proposal features for the next stage.
        """
        return StagePredictions(logits[None], boxes[None])

    def _pool(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        """Pools (B * P, R * R, C) RoI features at (B, P, 4) boxes."""
        with torch.autocast(boxes.device.type, enabled=False):
            # By image only since ROIPooler takes Boxes of each image; it pools those of all images at once.
            pooled: Tensor = self.box_pooler(maps, [Boxes(image_boxes) for image_boxes in boxes])
        return pooled.flatten(2).transpose(1, 2)

    def _run(self, stage: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        checkpointed = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        outputs: tuple[Tensor, Tensor, Tensor] = (
            checkpoint(stage, *inputs, use_reentrant=False) if checkpointed else stage(*inputs)
        )
        return outputs

    def _refine(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        """Applies (B, P, 4) deltas to (B, P, 4) boxes, in float32."""
        with torch.autocast(boxes.device.type, enabled=False):
            refined = self.box_transform.apply_deltas(deltas.float().flatten(0, 1), boxes.flatten(0, 1))
        return refined.view_as(boxes)


def _check_config(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
    """Raises a ValueError that names the key, its value and the remedy."""
    node = cfg.MODEL.SparseRCNN
    if node.NUM_CLASSES < 1:
        raise ValueError(
            f"MODEL.SparseRCNN.NUM_CLASSES is {node.NUM_CLASSES}: give the number of classes, "
            "or let tools/train_net.py (or resolve_num_classes) take it from DATASETS.TRAIN"
        )
    if node.NUM_HEADS < 1:
        raise ValueError(f"MODEL.SparseRCNN.NUM_HEADS, the number of stages, is {node.NUM_HEADS}: at least 1")
    if node.HIDDEN_DIM % node.NHEADS:
        raise ValueError(
            f"MODEL.SparseRCNN.HIDDEN_DIM {node.HIDDEN_DIM} is not a multiple of the number of attention heads, "
            f"NHEADS {node.NHEADS}"
        )
    if not 0 < node.PRIOR_PROB < 1:
        raise ValueError(f"MODEL.SparseRCNN.PRIOR_PROB is {node.PRIOR_PROB}: it must lie between 0 and 1")
    if not node.USE_FOCAL:
        raise ValueError("MODEL.SparseRCNN.USE_FOCAL False (softmax) is not supported: set it to True")
    if node.NUM_DYNAMIC != 2:
        raise ValueError(f"MODEL.SparseRCNN.NUM_DYNAMIC is {node.NUM_DYNAMIC}: only 2 is defined")
    if node.ACTIVATION not in ACTIVATIONS:
        raise ValueError(f"MODEL.SparseRCNN.ACTIVATION is {node.ACTIVATION!r}: use one of {list(ACTIVATIONS)}")
    for name in cfg.MODEL.ROI_HEADS.IN_FEATURES:
        if name not in input_shape:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES has {name!r}, which the backbone does not give: "
                f"choose from {sorted(input_shape)}"
            )
        if input_shape[name].channels != node.HIDDEN_DIM:
            raise ValueError(
                f"the backbone's {name!r} has {input_shape[name].channels} channels, but "
                f"MODEL.SparseRCNN.HIDDEN_DIM is {node.HIDDEN_DIM}: set MODEL.FPN.OUT_CHANNELS to the same"
            )
