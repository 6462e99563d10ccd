"""Matchers: they assign ground truths to proposals, given the matching costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ...config_resolution import resolved_copy
from ..structures import BACKGROUND, Assignment, MatchCosts
from .sinkhorn import sinkhorn
from .units import UnitSchedule

# Rounds in which ground truths without a proposal choose one at once. Enough for a few of them that want the same.
_ROUNDS = 4

MATCHER_REGISTRY = Registry("MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers, selected by ``MODEL.SparseRCNN.MATCHER`` and built by ``MATCHER_REGISTRY.get(name)(cfg)``.
A matcher is a :class:`Matcher`.
"""


class Matcher(nn.Module, ABC):
    """Assigns ground truths to the proposals of all stages and images. Has no parameters and no gradients.

    Attributes:
        one_to_many: whether a ground truth may get several proposals. Every subclass must set it: the divisor of the
            losses and the need for NMS follow from it.
    """

    one_to_many: ClassVar[bool]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not hasattr(cls, "one_to_many"):
            raise TypeError(
                f"matcher {cls.__name__} does not say whether it is one-to-many: set its class attribute "
                "one_to_many to True or False"
            )

    @abstractmethod
    def forward(self, costs: MatchCosts) -> Assignment:
        """Assigns a ground truth or background to each proposal of each stage and image."""


@MATCHER_REGISTRY.register()
class HungarianMatcher(Matcher):
    """One-to-one matching with the least total cost, by SciPy's ``linear_sum_assignment``.

    Each ground truth gets one proposal. If there are more ground truths than proposals, each proposal gets a ground
    truth, and the remaining ground truths get none.
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
        """Matches on the host: copies all costs there at once, and the assignment back."""
        cost, valid = costs.cost.cpu().numpy(), costs.valid.cpu().numpy()
        columns = [np.flatnonzero(row) for row in valid]
        gt_index = np.full(cost.shape[:3], BACKGROUND, dtype=np.int64)
        for stage, image in np.ndindex(*cost.shape[:2]):
            column = columns[image]
            proposal, ground_truth = linear_sum_assignment(cost[stage, image][:, column])
            gt_index[stage, image, proposal] = column[ground_truth]
        return Assignment(torch.from_numpy(gt_index).to(costs.cost.device))


@MATCHER_REGISTRY.register()
class OptimalTransportMatcher(Matcher):
    """One-to-many matching as optimal transport (Dynamic Sparse R-CNN, section 3.2; as in OTA, arXiv 2103.14259).

    Each ground truth supplies the units of a :class:`UnitSchedule`, background supplies the rest, and each proposal
    demands one unit. Then each ground truth without a proposal gets a cheap one, if there are enough proposals.

    The solver ``sinkhorn`` solves all stages and images at once on their device, without synchronization. The solver
    ``exact`` solves them one by one on the host, in whole units: it rounds supplies up or down at random such that
    their mean is kept.
    """

    one_to_many = True

    @configurable
    def __init__(self, *, schedule: UnitSchedule, solver: str, epsilon: float, num_iters: int) -> None:
        """
        Args:
            schedule: computes the units of each ground truth.
            solver: ``sinkhorn`` or ``exact``.
            epsilon: weight of Sinkhorn's entropy, in units of the cost.
            num_iters: number of Sinkhorn iterations.

        Raises:
            ValueError: a value is invalid; names the key.
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
        """Assigns ground truths; the assignment has the supply and, with ``sinkhorn``, the residual."""
        supply = self.schedule(costs)
        if self.solver == "exact":
            supply = _round_at_random(supply)
            gt_index, residual = _assign_exactly(costs, supply), None
        else:
            gt_index, residual = self._assign_by_sinkhorn(costs, supply)
        return Assignment(_give_each_ground_truth_one(gt_index, costs), supply, residual)

    def _assign_by_sinkhorn(self, costs: MatchCosts, supply: Tensor) -> tuple[Tensor, Tensor]:
        stages, images, proposals, ground_truths = costs.cost.shape
        # The rows are the ground truths, and last background, which costs 0 and supplies the remaining units.
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
        # Decoded as in OTA: each row is divided by its largest entry, so that small supplies count too.
        relative = transport.plan / transport.plan.amax(2, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        # argmax returns the first of equal entries: ground truths win against background.
        best = relative.view(stages, images, ground_truths + 1, proposals).argmax(2)
        gt_index = torch.where(best == ground_truths, BACKGROUND, best)
        return gt_index, transport.residual.view(stages, images)


def _assign_exactly(costs: MatchCosts, supply: Tensor) -> Tensor:
    """Solves the transport exactly for whole units, as an assignment in which each ground truth is repeated."""
    cost, units = costs.cost.cpu().numpy(), supply.long().cpu().numpy()
    gt_index = np.full(cost.shape[:3], BACKGROUND, dtype=np.int64)
    for stage, image in np.ndindex(*cost.shape[:2]):
        column = np.repeat(np.arange(cost.shape[3]), units[stage, image])
        proposal, chosen = linear_sum_assignment(cost[stage, image][:, column])
        gt_index[stage, image, proposal] = column[chosen]
    return torch.from_numpy(gt_index).to(costs.cost.device)


def _round_at_random(supply: Tensor) -> Tensor:
    """Rounds (S, B, G) units up or down at random, such that the expected value of each is kept.

    This is systematic sampling: one random number per stage and image shifts the cumulative sums before they are
    rounded down. So the sum over an image's ground truths changes by less than 1.
    """
    shift = torch.rand(*supply.shape[:2], 1).to(supply.device)
    sums = (supply.double().cumsum(-1) + shift).floor()
    return sums.diff(dim=-1, prepend=torch.zeros_like(sums[..., :1])).to(supply.dtype)


def _give_each_ground_truth_one(gt_index: Tensor, costs: MatchCosts) -> Tensor:
    """Gives each ground truth that has no proposal a free one that raises the total cost little.

    Background proposals are free, and all proposals of a ground truth except its cheapest. In a few rounds all ground
    truths choose their cheapest free proposal at once; where several choose the same, the one that raises the cost
    least gets it. Then those that are left share the cheapest free proposals.

    Args:
        gt_index: (S, B, P) int64, see :class:`Assignment`.
        costs: the costs that it was computed from.

    Returns:
        (S, B, P) int64, in which min(G, P) ground truths have a proposal.
    """
    for _ in range(_ROUNDS):
        increase = _cost_increase(gt_index, costs)
        if gt_index.device.type == "cpu" and increase.isinf().all():  # on a GPU this question would synchronize
            return gt_index
        least, choice = increase.min(2, keepdim=True)
        bids = torch.full_like(increase, torch.inf).scatter(2, choice, least)
        lowest, winner = bids.min(3)
        gt_index = torch.where(lowest.isinf(), gt_index, winner)
    increase = _cost_increase(gt_index, costs)
    # Pairs the cheapest free proposals with the ground truths that are left; then pairs of infinite cost follow.
    number = min(increase.shape[2:])
    proposal_cost, proposal = increase.amin(3).sort(2)
    ground_truth_cost, ground_truth = increase.amin(2).sort(2)
    pairs_end = proposal_cost[..., :number].isinf() | ground_truth_cost[..., :number].isinf()
    proposal, ground_truth = proposal[..., :number], ground_truth[..., :number]
    return gt_index.scatter(2, proposal, torch.where(pairs_end, gt_index.gather(2, proposal), ground_truth))


def _cost_increase(gt_index: Tensor, costs: MatchCosts) -> Tensor:
    """Returns the (S, B, P, G) increase of the total cost if a proposal went to a ground truth that has none.

    It is infinite for proposals that are not free, and for ground truths that have one or are padding.
    """
    owned = gt_index[..., None] == torch.arange(costs.cost.shape[3], device=gt_index.device)
    own_cost = costs.cost.masked_fill(~owned, torch.inf)
    present_cost = own_cost.amin(3).masked_fill(gt_index == BACKGROUND, 0)
    position = torch.arange(gt_index.shape[2], device=gt_index.device)
    taken = (owned & (position[:, None] == own_cost.argmin(2, keepdim=True))).any(3)
    wanting = ~owned.any(2) & costs.valid
    excluded = taken[..., None] | ~wanting[:, :, None]
    return (costs.cost - present_cost[..., None]).masked_fill(excluded, torch.inf)


def build_matcher(cfg: CfgNode) -> Matcher:
    """Builds the matcher of the config's detector.

    Raises:
        ValueError: the config contradicts itself, or neither names a matcher nor an architecture that has one.
    """
    cfg = resolved_copy(cfg)
    if cfg.MODEL.SparseRCNN.MATCHER is None:
        raise ValueError(
            f"MODEL.SparseRCNN.MATCHER is None, and MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no "
            "default matcher: set one of the two keys"
        )
    return MATCHER_REGISTRY.get(cfg.MODEL.SparseRCNN.MATCHER)(cfg)
