"""Matching costs: how well each proposal fits each ground truth, for all stages and images at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ...config_resolution import find_registered
from ..structures import BatchedTargets, MatchCosts, StagePredictions

COST_REGISTRY = Registry("COST")
COST_REGISTRY.__doc__ = """
Terms of the matching cost, selected by ``MODEL.SparseRCNN.COSTS`` and built by ``COST_REGISTRY.get(name)(cfg)``.
A term is a :class:`CostTerm`.
"""


def box_iou_and_giou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Computes IoU and generalized IoU (arXiv 1902.09630) of boxes, with broadcasting.

    torchvision's functions compare all boxes of one set with all of another. This one broadcasts over a whole batch,
    and gives 0 instead of NaN for empty boxes.

    Args:
        boxes: (..., 4) XYXY.
        others: (..., 4) XYXY, broadcastable to ``boxes``.

    Returns:
        IoU in [0, 1] and GIoU in [-1, 1], of the broadcast shape without the last dimension.
    """
    # One tensor per coordinate: arithmetic on pairs of coordinates in the last dimension is several times slower.
    left, top, right, bottom = boxes.unbind(-1)
    other_left, other_top, other_right, other_bottom = others.unbind(-1)
    width = torch.min(right, other_right) - torch.max(left, other_left)
    height = torch.min(bottom, other_bottom) - torch.max(top, other_top)
    intersection = width.clamp(min=0) * height.clamp(min=0)
    areas = (right - left) * (bottom - top), (other_right - other_left) * (other_bottom - other_top)
    union = areas[0] + areas[1] - intersection
    hull_width = torch.max(right, other_right) - torch.min(left, other_left)
    hull_area = hull_width * (torch.max(bottom, other_bottom) - torch.min(top, other_top))
    tiny = torch.finfo(union.dtype).tiny
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull_area - union) / hull_area.clamp(min=tiny)


@dataclass(frozen=True)
class Pairs:
    """All pairs of a proposal and a ground truth of the same image: the input of cost terms."""

    predictions: StagePredictions
    targets: BatchedTargets

    @cached_property
    def iou_and_giou(self) -> tuple[Tensor, Tensor]:
        """IoU and GIoU of all pairs, (S, B, P, G) each."""
        return box_iou_and_giou(self.predictions.boxes[:, :, :, None], self.targets.boxes[None, :, None])


class WeightedTerm(nn.Module, ABC):
    """A term of a weighted sum, of the matching cost or of the loss.

    Attributes:
        weight_key: the key in ``MODEL.SparseRCNN`` that ``weight`` is read from, if the term is built from a config.
    """

    weight_key: ClassVar[str]

    @configurable
    def __init__(self, *, weight: float) -> None:
        """
        Args:
            weight: factor that :class:`MatchCostModel` or the criterion applies.
        """
        super().__init__()
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {"weight": cfg.MODEL.SparseRCNN[cls.weight_key]}


class FocalTerm(WeightedTerm):
    """A term that is computed from the focal loss (arXiv 1708.02002)."""

    weight_key = "CLASS_WEIGHT"

    @configurable
    def __init__(self, *, weight: float, alpha: float, gamma: float) -> None:
        """
        Args:
            weight: factor that :class:`MatchCostModel` or the criterion applies.
            alpha: alpha of the focal loss.
            gamma: gamma of the focal loss.
        """
        super().__init__(weight=weight)
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        node = cfg.MODEL.SparseRCNN
        return super().from_config(cfg) | {"alpha": node.ALPHA, "gamma": node.GAMMA}


class CostTerm(WeightedTerm):
    """One term of the matching cost."""

    @abstractmethod
    def forward(self, pairs: Pairs) -> Tensor:
        """Returns (S, B, P, G) float32 costs relative to background, without the weight. Gradients are disabled."""


@COST_REGISTRY.register()
class ClassCost(FocalTerm, CostTerm):
    """The focal loss of classifying a proposal as the ground truth's class, minus that of background."""

    def forward(self, pairs: Pairs) -> Tensor:
        stages, _, proposals, _ = pairs.predictions.logits.shape
        index = pairs.targets.classes[None, :, None].expand(stages, -1, proposals, -1)
        logit = pairs.predictions.logits.gather(-1, index)
        probability = logit.sigmoid()
        positive = self.alpha * (1 - probability) ** self.gamma * F.softplus(-logit)
        negative = (1 - self.alpha) * probability**self.gamma * F.softplus(logit)
        return positive - negative


@COST_REGISTRY.register()
class L1Cost(CostTerm):
    """L1 distance of the four box coordinates, relative to image width and height."""

    weight_key = "L1_WEIGHT"

    def forward(self, pairs: Pairs) -> Tensor:
        boxes, whwh = pairs.predictions.boxes, pairs.targets.image_whwh[:, None]
        wanted = (pairs.targets.boxes / whwh).expand(len(boxes), -1, -1, -1)
        distance = torch.cdist((boxes / whwh).flatten(0, 1), wanted.flatten(0, 1), p=1)
        return distance.unflatten(0, boxes.shape[:2])


@COST_REGISTRY.register()
class GIoUCost(CostTerm):
    """Minus the generalized IoU (arXiv 1902.09630)."""

    weight_key = "GIOU_WEIGHT"

    def forward(self, pairs: Pairs) -> Tensor:
        return -pairs.iou_and_giou[1]


class MatchCostModel(nn.Module):
    """The weighted sum of cost terms; by default of classification, L1 and GIoU (Sparse R-CNN, section 3.3).

    Costs are relative to background, so for every matcher background costs 0.
    """

    @configurable
    def __init__(self, *, terms: Sequence[CostTerm]) -> None:
        """
        Args:
            terms: the cost terms, at least one with a weight other than 0.

        Raises:
            ValueError: all weights are 0.
        """
        super().__init__()
        if all(term.weight == 0 for term in terms):
            raise ValueError(
                "MODEL.SparseRCNN.COSTS has no term with a weight other than 0: set CLASS_WEIGHT, L1_WEIGHT or "
                "GIOU_WEIGHT"
            )
        self.terms = nn.ModuleList(terms)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        names = cfg.MODEL.SparseRCNN.COSTS
        return {"terms": [find_registered(COST_REGISTRY, name, "MODEL.SparseRCNN.COSTS")(cfg) for name in names]}

    @torch.no_grad()
    def forward(self, predictions: StagePredictions, targets: BatchedTargets) -> MatchCosts:
        """Computes all costs in float32, under autocast too."""
        with torch.autocast(predictions.boxes.device.type, enabled=False):
            exact = replace(predictions, logits=predictions.logits.float(), boxes=predictions.boxes.float())
            pairs = Pairs(exact, targets)
            cost = reduce(torch.add, [term.weight * term(pairs) for term in self.terms if term.weight])
        return MatchCosts(cost, pairs.iou_and_giou[0], targets.valid)
