"""The cost of making a proposal learn from a ground truth, for all stages and images at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ...config_resolution import find_registered
from ..structures import BatchedTargets, MatchCosts, StagePredictions

COST_REGISTRY = Registry("COST")
COST_REGISTRY.__doc__ = """
Terms of the matching cost, chosen by ``MODEL.SparseRCNN.COSTS`` and built by ``COST_REGISTRY.get(name)(cfg)``.
A term is a :class:`CostTerm`.
"""


def box_iou_and_giou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and its generalised form (arXiv 1902.09630), with broadcasting.

    torchvision compares all boxes of one set with all of another; this compares any shapes that
    broadcast, which serves whole batches of pairs, and gives 0 instead of NaN for empty boxes.

    Args:
        boxes: (..., 4) absolute XYXY.
        others: (..., 4) absolute XYXY, broadcastable to ``boxes``.

    Returns:
        IoU in [0, 1] and GIoU in [-1, 1], both of the broadcast shape without the last dimension.
    """
    # One tensor a coordinate: arithmetic on pairs in the last dimension is several times slower.
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
    """Each proposal of each stage beside each ground truth of its image: what cost terms compare."""

    predictions: StagePredictions
    targets: BatchedTargets

    @cached_property
    def iou_and_giou(self) -> tuple[Tensor, Tensor]:
        """(S, B, P, G) each, of predicted and true boxes."""
        return box_iou_and_giou(self.predictions.boxes[:, :, :, None], self.targets.boxes[None, :, None])


class CostTerm(nn.Module, ABC):
    """One reason for and against making a proposal learn from a ground truth."""

    def __init__(self, *, weight: float) -> None:
        """
        Args:
            weight: what :class:`MatchCostModel` multiplies it by.
        """
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, pairs: Pairs) -> Tensor:
        """(S, B, P, G) float32 cost, relative to background's, without the weight. There is no gradient to keep."""


@COST_REGISTRY.register()
class ClassCost(CostTerm):
    """The focal loss of calling a proposal the ground truth's class, minus that of calling it background."""

    @configurable
    def __init__(self, *, weight: float, alpha: float, gamma: float) -> None:
        """
        Args:
            weight: of the term.
            alpha: of the focal loss (arXiv 1708.02002).
            gamma: of the focal loss.
        """
        super().__init__(weight=weight)
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        node = cfg.MODEL.SparseRCNN
        return {"weight": node.CLASS_WEIGHT, "alpha": node.ALPHA, "gamma": node.GAMMA}

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
    """The sum of the four coordinates' distances, in units of the image's width and height."""

    @configurable
    def __init__(self, *, weight: float) -> None:
        super().__init__(weight=weight)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {"weight": cfg.MODEL.SparseRCNN.L1_WEIGHT}

    def forward(self, pairs: Pairs) -> Tensor:
        boxes, whwh = pairs.predictions.boxes, pairs.targets.image_whwh[:, None]
        wanted = (pairs.targets.boxes / whwh).expand(len(boxes), -1, -1, -1)
        distance = torch.cdist((boxes / whwh).flatten(0, 1), wanted.flatten(0, 1), p=1)
        return distance.unflatten(0, boxes.shape[:2])


@COST_REGISTRY.register()
class GIoUCost(CostTerm):
    """Minus the generalized IoU (arXiv 1902.09630)."""

    @configurable
    def __init__(self, *, weight: float) -> None:
        super().__init__(weight=weight)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {"weight": cfg.MODEL.SparseRCNN.GIOU_WEIGHT}

    def forward(self, pairs: Pairs) -> Tensor:
        return -pairs.iou_and_giou[1]


class MatchCostModel(nn.Module):
    """The weighted sum of cost terms; of classification, L1 and GIoU by default (Sparse R-CNN, section 3.3).

    All terms are relative to background, which hence costs 0, for every matcher.
    """

    @configurable
    def __init__(self, *, terms: Sequence[CostTerm]) -> None:
        """
        Args:
            terms: at least one with a weight.

        Raises:
            ValueError: there is none.
        """
        super().__init__()
        if all(term.weight == 0 for term in terms):
            raise ValueError(
                "matching costs nothing: MODEL.SparseRCNN.COSTS needs a term with a weight. The weights of the usual "
                "ones are CLASS_WEIGHT, L1_WEIGHT and GIOU_WEIGHT"
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
