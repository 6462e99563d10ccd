"""Matchers: which ground truth each proposal learns from, as a pure function of the costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ...config import resolved_copy
from ..structures import BACKGROUND, Assignment, MatchCosts
from .sinkhorn import sinkhorn

MATCHER_REGISTRY = Registry("MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers, chosen by ``MODEL.SparseRCNN.MATCHER`` and built by ``MATCHER_REGISTRY.get(name)(cfg)``.
A matcher is a :class:`Matcher`.
"""


# Ground truths that want the same proposal are rarely more than two or three.
_BIDDING_ROUNDS = 4


class Matcher(nn.Module, ABC):
    """Turns the costs of all stages and images into an assignment. Learns nothing, has no gradient.

    Attributes:
        one_to_many: whether a ground truth may get several proposals; every matcher says so. The losses' divisor and
            whether inference needs NMS follow from it.
    """

    one_to_many: ClassVar[bool]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not hasattr(cls, "one_to_many"):
            raise TypeError(
                f"the matcher {cls.__name__} must say whether it is one-to-many: set its class attribute "
                "one_to_many to True or False"
            )

    @abstractmethod
    def forward(self, costs: MatchCosts) -> Assignment:
        """Assigns a ground truth or background to each proposal of each stage and image."""


@MATCHER_REGISTRY.register()
class HungarianMatcher(Matcher):
    """One-to-one matching at the least total cost, by SciPy's rectangular assignment.

    Each ground truth gets one proposal. Where there are more ground truths than proposals, each
    proposal gets one, so that the total cost is least, and the other ground truths get none.
    """

    one_to_many = False

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {}

    @torch.no_grad()
    def forward(self, costs: MatchCosts) -> Assignment:
        """Matches on the host: one copy of all costs there, one of the assignment back."""
        cost, valid = costs.cost.cpu().numpy(), costs.valid.cpu().numpy()
        columns = [np.flatnonzero(row) for row in valid]
        gt_index = np.full(cost.shape[:3], BACKGROUND, dtype=np.int64)
        for stage, image in np.ndindex(*cost.shape[:2]):
            column = columns[image]
            proposal, ground_truth = linear_sum_assignment(cost[stage, image][:, column])
            gt_index[stage, image, proposal] = column[ground_truth]
        return Assignment(torch.from_numpy(gt_index).to(costs.cost.device))


class UnitSchedule:
    """How many proposals each ground truth should teach, stage by stage (Dynamic Sparse R-CNN, section 3.2).

    ``k`` units a ground truth: fixed, or dynamic, as the sum of its ``top_q`` largest IoUs with the proposals,
    rounded down. Stage t of T gets ``k - unit_step * (T - t)``, at least 1, so that later stages never get fewer
    for the same IoUs. If all together would get more than ``max_positive_ratio`` of the proposals, what they have
    above 1 is scaled down to that share; only if they are more than that share themselves, they get less than 1.
    """

    def __init__(self, *, fixed_k: int, top_q: int, unit_step: float, max_positive_ratio: float) -> None:
        """
        Args:
            fixed_k: k of every ground truth; 0: dynamic.
            top_q: how many of the largest IoUs count.
            unit_step: units that one stage gets more than the one before it.
            max_positive_ratio: largest share of the proposals that ground truths may supply, in (0, 1].
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
        """(S, B, G) float32 units of each ground truth; 0 in the padding."""
        stages, _, proposals, _ = costs.iou.shape
        units = self._base_units(costs.iou)
        later = torch.arange(stages - 1, -1, -1, device=units.device)
        above_one = (units - self.unit_step * later[:, None, None] - 1).clamp(min=0) * costs.valid
        most = self.max_positive_ratio * proposals
        number = costs.valid.sum(-1, keepdim=True).clamp(min=1)
        room = (most - number).clamp(min=0) / above_one.sum(-1, keepdim=True).clamp(min=1e-6)
        return (most / number).clamp(max=1) * costs.valid + above_one * room.clamp(max=1)

    def _base_units(self, iou: Tensor) -> Tensor:
        if self.fixed_k:
            return torch.full_like(iou[:, :, 0], self.fixed_k)
        best = iou.topk(min(self.top_q, iou.shape[2]), dim=2).values
        # Whole units: what is rounded down, as the sum of float32 IoUs, must not depend on their last bit.
        return (best.sum(2) + 1e-4).floor().clamp(min=1)


@MATCHER_REGISTRY.register()
class OptimalTransportMatcher(Matcher):
    """One-to-many matching as optimal transport (Dynamic Sparse R-CNN, section 3.2; as OTA, arXiv 2103.14259).

    Ground truths supply the units of a :class:`UnitSchedule`, background supplies the rest, each proposal
    demands one. Two solvers: ``sinkhorn`` solves the problems of all stages and images at once, on their
    device and without waiting for it; ``exact`` solves one after the other on the host, in whole units.
    Then every ground truth without a proposal gets a cheap one, while proposals suffice.
    """

    one_to_many = True

    @configurable
    def __init__(self, *, schedule: UnitSchedule, solver: str, epsilon: float, num_iters: int) -> None:
        """
        Args:
            schedule: the units of each ground truth.
            solver: ``sinkhorn`` or ``exact``.
            epsilon: of Sinkhorn's entropy, in units of the cost.
            num_iters: of Sinkhorn's iteration.
        """
        super().__init__()
        if solver not in ("sinkhorn", "exact"):
            raise ValueError(f"MODEL.SparseRCNN.DLA.SOLVER is {solver!r}: use sinkhorn or exact")
        if epsilon <= 0 or num_iters < 1:
            raise ValueError(
                f"MODEL.SparseRCNN.DLA needs SINKHORN_EPS > 0 and SINKHORN_ITERS >= 1, got {epsilon} and {num_iters}"
            )
        self.schedule = schedule
        self.solver = solver
        self.epsilon = epsilon
        self.num_iters = num_iters

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        node = cfg.MODEL.SparseRCNN.DLA
        return {
            "schedule": UnitSchedule(
                fixed_k=node.K,
                top_q=node.TOP_Q,
                unit_step=node.UNIT_STEP,
                max_positive_ratio=node.MAX_POSITIVE_RATIO,
            ),
            "solver": node.SOLVER,
            "epsilon": node.SINKHORN_EPS,
            "num_iters": node.SINKHORN_ITERS,
        }

    @torch.no_grad()
    def forward(self, costs: MatchCosts) -> Assignment:
        """Assigns, and reports supply and (with ``sinkhorn``) residual in the assignment."""
        supply = self.schedule(costs)
        if self.solver == "exact":
            # Whole units; the slack is for sums of float32 that should be whole.
            supply = (supply + 1e-4).floor().clamp(min=1) * costs.valid
            gt_index, residual = _assign_exactly(costs, supply), None
        else:
            gt_index, residual = self._assign_by_sinkhorn(costs, supply)
        return Assignment(_give_each_ground_truth_one(gt_index, costs), supply, residual)

    def _assign_by_sinkhorn(self, costs: MatchCosts, supply: Tensor) -> tuple[Tensor, Tensor]:
        stages, images, proposals, ground_truths = costs.cost.shape
        # Rows of the problems: the ground truths, then background, which costs 0 and supplies the rest.
        rows = torch.cat([costs.cost.transpose(2, 3), costs.cost.new_zeros(stages, images, 1, proposals)], dim=2)
        background = (proposals - supply.sum(-1, keepdim=True)).clamp(min=0)
        row_mass = torch.cat([supply, background], dim=2)
        transport = sinkhorn(
            rows.flatten(0, 1),
            row_mass.flatten(0, 1),
            rows.new_ones(stages * images, proposals),
            epsilon=self.epsilon,
            num_iters=self.num_iters,
        )
        # As OTA decodes: each row relative to its largest entry, so that small supplies are heard as well.
        relative = transport.plan / transport.plan.amax(2, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        best = _first_argmax(relative.view(stages, images, ground_truths + 1, proposals), dim=2)
        gt_index = torch.where(best == ground_truths, BACKGROUND, best)
        return gt_index, transport.residual.view(stages, images)


def _assign_exactly(costs: MatchCosts, supply: Tensor) -> Tensor:
    """The optimum for a supply of whole units: an assignment with each ground truth repeated."""
    cost, units = costs.cost.cpu().numpy(), supply.long().cpu().numpy()
    gt_index = np.full(cost.shape[:3], BACKGROUND, dtype=np.int64)
    for stage, image in np.ndindex(*cost.shape[:2]):
        column = np.repeat(np.arange(cost.shape[3]), units[stage, image])
        proposal, chosen = linear_sum_assignment(cost[stage, image][:, column])
        gt_index[stage, image, proposal] = column[chosen]
    return torch.from_numpy(gt_index).to(costs.cost.device)


def _give_each_ground_truth_one(gt_index: Tensor, costs: MatchCosts) -> Tensor:
    """Gives each ground truth without a proposal one, while proposals suffice.

    In each of few rounds, those without one bid for the free proposal that raises the total cost least; where
    several bid for the same, the one that it costs least gets it. Who is left then gets any free proposal.
    """
    for _ in range(min(_BIDDING_ROUNDS, costs.cost.shape[3])):
        wanting, free = _wanting_and_free(gt_index, costs)
        if gt_index.device.type == "cpu" and not wanting.any():
            return gt_index
        gt_index = _bid(gt_index, costs, wanting, free)
    wanting, free = _wanting_and_free(gt_index, costs)
    return _hand_out(gt_index, wanting, free)


def _wanting_and_free(gt_index: Tensor, costs: MatchCosts) -> tuple[Tensor, Tensor]:
    """(S, B, G) ground truths without a proposal, and (S, B, P) proposals that they may have.

    Free are background, and of the proposals of a ground truth all but its cheapest.
    """
    stages, _, proposals, ground_truths = costs.cost.shape
    index = gt_index.clamp(min=0)
    present = _cost_of(gt_index, costs).masked_fill(gt_index == BACKGROUND, torch.inf)
    least = present.new_full((*gt_index.shape[:2], ground_truths), torch.inf)
    least.scatter_reduce_(2, index, present, "amin")
    cheapest = (present == least.gather(2, index)) & (gt_index != BACKGROUND)
    # Of equally cheap ones, the first is kept.
    position = torch.arange(proposals, device=gt_index.device).expand_as(gt_index)
    first = torch.full_like(least, proposals, dtype=torch.int64)
    first.scatter_reduce_(2, index, position.masked_fill(~cheapest, proposals), "amin")
    kept = position == first.gather(2, index)
    return (first == proposals) & costs.valid.expand(stages, -1, -1), ~kept


def _bid(gt_index: Tensor, costs: MatchCosts, wanting: Tensor, free: Tensor) -> Tensor:
    """One round: each of the free proposals goes to the ground truth that bids for it, if any does."""
    present = _cost_of(gt_index, costs).masked_fill(~free, -torch.inf)
    increase = (costs.cost - present[..., None]).masked_fill(~wanting[:, :, None], torch.inf)
    least = increase.amin(2, keepdim=True)
    # Of equally cheap proposals a ground truth takes the first: more than one would be more than it needs.
    chosen = _first_argmax(-increase, dim=2)[:, :, None]
    position = torch.arange(increase.shape[2], device=increase.device)[:, None]
    bids = increase.masked_fill((position != chosen) | least.isinf(), torch.inf)
    winner = _first_argmax(-bids, dim=3)
    return torch.where(bids.amin(3).isfinite(), winner, gt_index)


def _hand_out(gt_index: Tensor, wanting: Tensor, free: Tensor) -> Tensor:
    """Gives the n-th ground truth that wants one the n-th free proposal."""
    ground_truths = wanting.long().argsort(dim=2, descending=True, stable=True)
    rank = (free.cumsum(2) - 1).clamp(min=0)
    given = free & (rank < wanting.sum(2, keepdim=True))
    return torch.where(given, ground_truths.gather(2, rank.clamp(max=wanting.shape[2] - 1)), gt_index)


def _cost_of(gt_index: Tensor, costs: MatchCosts) -> Tensor:
    """(S, B, P) what each proposal's assignment costs: 0 for background."""
    cost = costs.cost.gather(3, gt_index.clamp(min=0)[..., None])[..., 0]
    return cost.masked_fill(gt_index == BACKGROUND, 0)


def _first_argmax(values: Tensor, dim: int) -> Tensor:
    """Index of the largest value, the first of equal ones: torch.argmax promises no order."""
    length = values.shape[dim]
    index = torch.arange(length, device=values.device).view([-1 if d == dim else 1 for d in range(values.dim())])
    return torch.where(values == values.amax(dim, keepdim=True), index, length - 1).amin(dim)


def build_matcher(cfg: CfgNode) -> Matcher:
    """Builds the matcher that the config's detector has, or that ``MODEL.SparseRCNN.MATCHER`` names.

    Raises:
        ValueError: there is none, or the config contradicts itself.
    """
    cfg = resolved_copy(cfg)
    if cfg.MODEL.SparseRCNN.MATCHER is None:
        raise ValueError(
            f"MODEL.SparseRCNN.MATCHER is None, and MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no "
            "matcher of its own: set either"
        )
    return MATCHER_REGISTRY.get(cfg.MODEL.SparseRCNN.MATCHER)(cfg)
