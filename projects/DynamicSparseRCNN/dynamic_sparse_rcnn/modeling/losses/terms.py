"""The losses of proposals whose ground truths are known: the terms of a criterion."""

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
Losses of a criterion, chosen by ``MODEL.SparseRCNN.LOSSES`` and built by ``LOSS_REGISTRY.get(name)(cfg)``.
A loss is a :class:`LossTerm`.
"""


@dataclass(frozen=True)
class Matched:
    """Predictions, and which ground truth each proposal learns from: what losses compare."""

    predictions: StagePredictions
    targets: BatchedTargets
    assignment: Assignment

    @cached_property
    def positive(self) -> Tensor:
        """(S, B, P) bool: the proposals that learn from a ground truth."""
        return self.assignment.positive

    def gather(self, values: Tensor) -> Tensor:
        """(B, G, ...) values of the ground truths to the (S, B, P, ...) of each proposal's own.

        Background proposals get those of ground truth 0: the caller masks them, which needs no host.
        """
        image = torch.arange(values.shape[0], device=values.device)[:, None]
        return values[image, self.assignment.gt_index.clamp(min=0)]

    @cached_property
    def boxes(self) -> Tensor:
        """(S, B, P, 4) each proposal's true box, absolute XYXY pixels."""
        return self.gather(self.targets.boxes)


class LossTerm(nn.Module, ABC):
    """A loss, summed over the images and proposals of each stage.

    Attributes:
        name: under which it is logged; that of a stage before the last gets a suffix.
    """

    name: ClassVar[str]

    def __init__(self, *, weight: float) -> None:
        """
        Args:
            weight: what the criterion multiplies it by.
        """
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, matched: Matched) -> Tensor:
        """(S,) float32 sums, without the weight. Autocast is off; logits may be of half precision."""


@LOSS_REGISTRY.register()
class ClassLoss(LossTerm):
    """Focal loss (arXiv 1708.02002) on all classes of all proposals; background in crowd regions learns nothing."""

    name = "loss_ce"

    @configurable
    def __init__(self, *, weight: float, alpha: float, gamma: float) -> None:
        """
        Args:
            weight: of the term.
            alpha: of the focal loss.
            gamma: of the focal loss.
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
    """The distance of the four coordinates, in units of the image's width and height."""

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
