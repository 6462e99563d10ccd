"""The units of optimal transport: how many proposals each ground truth should get."""

from __future__ import annotations

import torch
from torch import Tensor

from ..structures import MatchCosts


class UnitSchedule:
    """The units of each ground truth, stage by stage (Dynamic Sparse R-CNN, section 3.2, "units increasing").

    At stage t of T a ground truth gets ``max(1, k - unit_step * (T - t))`` units. ``k`` is fixed, or dynamic: the sum
    of the ground truth's ``top_q`` largest IoUs with the proposals, rounded down, at least 1.

    The units of an image add up to at most ``max_positive_ratio`` of its proposals. If they would exceed that, what
    each ground truth has above one unit is scaled down. If there are too many ground truths for one unit each, all get
    the same share.
    """

    def __init__(self, *, fixed_k: int, top_q: int, unit_step: float, max_positive_ratio: float) -> None:
        """
        Args:
            fixed_k: k of all ground truths; 0: dynamic.
            top_q: number of IoUs that a dynamic k sums up.
            unit_step: by how many units each stage exceeds the previous one.
            max_positive_ratio: maximum share of the proposals that get a ground truth, in (0, 1].

        Raises:
            ValueError: a value is out of its range; names the keys.
        """
        if fixed_k < 0 or top_q < 1 or unit_step < 0 or not 0 < max_positive_ratio <= 1:
            raise ValueError(
                "MODEL.SparseRCNN.DLA needs K >= 0, TOP_Q >= 1, UNIT_STEP >= 0 and MAX_POSITIVE_RATIO in (0, 1], "
                f"got {fixed_k}, {top_q}, {unit_step}, {max_positive_ratio}"
            )
        self.fixed_k = fixed_k
        self.top_q = top_q
        self.unit_step = unit_step
        self.max_positive_ratio = max_positive_ratio

    def __call__(self, costs: MatchCosts) -> Tensor:
        """Returns the (S, B, G) float32 units of the ground truths; 0 for padding."""
        stages, _, proposals, _ = costs.iou.shape
        stages_left = torch.arange(stages - 1, -1, -1, device=costs.iou.device)[:, None, None]  # T - t
        units = (self._k(costs.iou) - self.unit_step * stages_left).clamp(min=1) * costs.valid
        return _limit(units, costs.valid, self.max_positive_ratio * proposals)

    def _k(self, iou: Tensor) -> Tensor:
        """Computes k, (S, B, G), from (S, B, P, G) IoUs."""
        if self.fixed_k:
            return torch.full_like(iou[:, :, 0], self.fixed_k)
        best = iou.topk(min(self.top_q, iou.shape[2]), dim=2).values
        return best.sum(2).floor().clamp(min=1)


def _limit(units: Tensor, valid: Tensor, most: float) -> Tensor:
    """Scales the (S, B, G) units of (B, G) valid ground truths down, such that those of an image sum to <= ``most``."""
    number = valid.sum(-1, keepdim=True).clamp(min=1)
    first = (most / number).clamp(max=1) * valid
    above_one = (units - 1).clamp(min=0)
    room = most - first.sum(-1, keepdim=True)
    scale = room / above_one.sum(-1, keepdim=True).clamp(min=1e-6)
    return first + above_one * scale.clamp(0, 1)
