"""Loss terms: the losses of proposals that have been matched with ground truths."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from detectron2.utils.registry import Registry
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from ..assignment.costs import FocalTerm, WeightedTerm, box_iou_and_giou
from ..structures import Assignment, BatchedTargets, StagePredictions

LOSS_REGISTRY = Registry("LOSS")
LOSS_REGISTRY.__doc__ = """
Loss terms, selected by ``MODEL.SparseRCNN.LOSSES`` and built by ``LOSS_REGISTRY.get(name)(cfg)``.
A loss is a :class:`LossTerm`.
"""

# Minimum share of a box's area inside one crowd region; as in COCO's evaluation at its lowest IoU threshold.
_MIN_CROWD_SHARE = 0.5


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


class LossTerm(WeightedTerm):
    """A loss that is summed over the images and proposals of each stage.

    Attributes:
        name: name in the logs; earlier stages get a suffix.
    """

    name: ClassVar[str]

    @abstractmethod
    def forward(self, matched: Matched) -> Tensor:
        """Returns (S,) float32 sums, without the weight. Autocast is disabled; logits may be in half precision."""


@LOSS_REGISTRY.register()
class ClassLoss(FocalTerm, LossTerm):
    """Focal loss (arXiv 1708.02002) of all classes of all proposals, except background proposals in crowd regions."""

    name = "loss_ce"

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
    weight_key = "L1_WEIGHT"

    def forward(self, matched: Matched) -> Tensor:
        difference = (matched.predictions.boxes - matched.boxes) / matched.targets.image_whwh[:, None]
        return (difference.abs().sum(-1) * matched.positive).sum((1, 2))


@LOSS_REGISTRY.register()
class GIoULoss(LossTerm):
    """One minus the generalized IoU (arXiv 1902.09630)."""

    name = "loss_giou"
    weight_key = "GIOU_WEIGHT"

    def forward(self, matched: Matched) -> Tensor:
        _, giou = box_iou_and_giou(matched.predictions.boxes, matched.boxes)
        return ((1 - giou) * matched.positive).sum((1, 2))


@torch.no_grad()
def inside_crowd(boxes: Tensor, targets: BatchedTargets) -> Tensor:
    """Finds the boxes with at least half of their area inside one crowd region (COCO's ``iscrowd``) of their image.

    Args:
        boxes: (S, B, P, 4) absolute XYXY pixels.
        targets: ``crowd`` marks which of its boxes are crowd regions; None: none is.

    Returns:
        (S, B, P) bool.
    """
    if targets.crowd is None:
        return torch.zeros(boxes.shape[:3], dtype=torch.bool, device=boxes.device)
    own, regions = boxes[..., None, :], targets.boxes[:, None]
    sides = torch.minimum(own[..., 2:], regions[..., 2:]) - torch.maximum(own[..., :2], regions[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    inside = (shared >= _MIN_CROWD_SHARE * area[..., None]) & (shared > 0)
    return (inside & targets.crowd[:, None]).any(-1)
