"""Loss terms: the losses of proposals that have been matched with ground truths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from ..assignment.costs import box_iou_and_giou
from ..structures import Assignment, BatchedTargets, StagePredictions
from .crowd import inside_crowd

LOSS_REGISTRY = Registry("LOSS")
LOSS_REGISTRY.__doc__ = """
Loss terms, selected by ``MODEL.SparseRCNN.LOSSES`` and built by ``LOSS_REGISTRY.get(name)(cfg)``.
A loss is a :class:`LossTerm`.
"""


@dataclass(frozen=True)
class Matched:
    """Predictions with their matched ground truths: the input of loss terms."""

    predictions: StagePredictions
    targets: BatchedTargets
    assignment: Assignment

    @cached_property
    def positive(self) -> Tensor:
        """(S, B, P) bool: the proposals that have a ground truth."""
        return self.assignment.positive

    def gather(self, values: Tensor) -> Tensor:
        """Gathers each proposal's ground truth values, (B, G, ...) to (S, B, P, ...).

        Background proposals get the values of ground truth 0. Callers mask them with :attr:`positive`, which needs no
        synchronization with the device.
        """
        image = torch.arange(values.shape[0], device=values.device)[:, None]
        return values[image, self.assignment.gt_index.clamp(min=0)]

    @cached_property
    def boxes(self) -> Tensor:
        """(S, B, P, 4) the ground truth box of each proposal, absolute XYXY pixels."""
        return self.gather(self.targets.boxes)


class LossTerm(nn.Module, ABC):
    """A loss that is summed over the images and proposals of each stage.

    Attributes:
        name: name in the logs; earlier stages get a suffix.
    """

    name: ClassVar[str]

    def __init__(self, *, weight: float) -> None:
        """
        Args:
            weight: factor that the criterion applies.
        """
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, matched: Matched) -> Tensor:
        """Returns (S,) float32 sums, without the weight. Autocast is disabled; logits may be in half precision."""


@LOSS_REGISTRY.register()
class ClassLoss(LossTerm):
    """Focal loss (arXiv 1708.02002) of all classes of all proposals, except background proposals in crowd regions."""

    name = "loss_ce"

    @configurable
    def __init__(self, *, weight: float, alpha: float, gamma: float) -> None:
        """
        Args:
            weight: factor that the criterion applies.
            alpha: alpha of the focal loss.
            gamma: gamma of the focal loss.
        """
        super().__init__(weight=weight)
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        node = cfg.MODEL.SparseRCNN
        return {"weight": node.CLASS_WEIGHT, "alpha": node.ALPHA, "gamma": node.GAMMA}

    def forward(self, matched: Matched) -> Tensor:
        logits, targets = matched.predictions.logits, matched.targets
        classes = matched.gather(targets.classes)
        wanted = classes[..., None] == torch.arange(logits.shape[-1], device=logits.device)
        wanted &= matched.positive[..., None]
        loss = sigmoid_focal_loss(logits.float(), wanted.float(), self.alpha, self.gamma)
        if targets.crowd is not None:
            loss = loss * ~(inside_crowd(matched.predictions.boxes, targets) & ~matched.positive)[..., None]
        return loss.sum((1, 2, 3))


@LOSS_REGISTRY.register()
class L1Loss(LossTerm):
    """L1 distance of the four box coordinates, relative to image width and height."""

    name = "loss_bbox"

    @configurable
    def __init__(self, *, weight: float) -> None:
        super().__init__(weight=weight)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {"weight": cfg.MODEL.SparseRCNN.L1_WEIGHT}

    def forward(self, matched: Matched) -> Tensor:
        difference = (matched.predictions.boxes - matched.boxes) / matched.targets.image_whwh[:, None]
        return (difference.abs().sum(-1) * matched.positive).sum((1, 2))


@LOSS_REGISTRY.register()
class GIoULoss(LossTerm):
    """One minus the generalized IoU (arXiv 1902.09630)."""

    name = "loss_giou"

    @configurable
    def __init__(self, *, weight: float) -> None:
        super().__init__(weight=weight)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {"weight": cfg.MODEL.SparseRCNN.GIOU_WEIGHT}

    def forward(self, matched: Matched) -> Tensor:
        _, giou = box_iou_and_giou(matched.predictions.boxes, matched.boxes)
        return ((1 - giou) * matched.positive).sum((1, 2))
