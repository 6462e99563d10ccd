"""The criterion: matches predictions and ground truths, and computes the weighted losses of all stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ...config_resolution import choose_normalizer, find_registered, resolved_copy
from ..assignment.costs import GIoUCost, L1Cost, MatchCostModel
from ..assignment.matchers import HungarianMatcher, Matcher, build_matcher
from ..events import ScalarLog
from ..structures import Assignment, BatchedTargets, StagePredictions
from .terms import LOSS_REGISTRY, GIoULoss, L1Loss, LossTerm, Matched

CRITERION_REGISTRY = Registry("CRITERION")
CRITERION_REGISTRY.__doc__ = """
Criteria, selected by ``MODEL.SparseRCNN.CRITERION`` and built by ``CRITERION_REGISTRY.get(name)(cfg)``.
A criterion maps ``(StagePredictions, BatchedTargets)`` to a dict of weighted scalar losses.
"""


@dataclass(frozen=True)
class LossSums:
    """Weighted losses, summed over the images and proposals of each stage and not yet divided.

    Attributes:
        of_stages: (S,) float32 by the name of the loss term.
        of_start: float32 scalars of the initial boxes by name; empty if they have no losses of their own.
        count: what they are to be divided by, see :meth:`SetCriterion.count`.
    """

    of_stages: dict[str, Tensor]
    of_start: dict[str, Tensor]
    count: Tensor

    def divided(self, divisor: Tensor) -> dict[str, Tensor]:
        """Divides the sums, and names them as the public Sparse R-CNN does: those of the last stage have no suffix.

        Args:
            divisor: (1,), (S,) or (1 + S,) float32, as ``count``.

        Returns:
            Scalars, as :class:`SetCriterion` returns them.
        """
        named: dict[str, Tensor] = {}
        for name, sums in self.of_stages.items():
            *earlier, last = (sums / divisor[-len(sums) :]).unbind()
            named[name] = last
            named.update({f"{name}_{stage}": value for stage, value in enumerate(earlier)})
        return named | {name: loss / divisor[0] for name, loss in self.of_start.items()}


@CRITERION_REGISTRY.register()
class SetCriterion(nn.Module):
    """The set prediction loss of Sparse R-CNN (arXiv 2011.12450, section 3.3), for all stages at once.

    Losses are summed over the images and proposals of a stage. The sums are divided by the number of ground truths or,
    with a one-to-many matcher (Dynamic Sparse R-CNN, arXiv 2205.02101, section 3.2), by the stage's number of positive
    proposals. Statistics of one-to-many assignments are logged to detectron2's ``EventStorage``.
    """

    @configurable
    def __init__(
        self,
        *,
        cost_model: MatchCostModel,
        matcher: Matcher,
        losses: Sequence[LossTerm],
        deep_supervision: bool,
        normalizer: str | None = None,
        start: SetCriterion | None = None,
    ) -> None:
        """
        Args:
            cost_model: computes the matching costs.
            matcher: assigns ground truths to proposals.
            losses: the loss terms; their names must differ.
            deep_supervision: whether all stages are supervised, or only the last.
            normalizer: divisor of a stage's losses, ``positives`` or ``num_gt``; None: the matcher's default. Must be
                None for one-to-one matchers.
            start: criterion of the initial boxes, see :func:`start_criterion`; None: the initial boxes have no losses
                of their own.

        Raises:
            ValueError: ``normalizer`` contradicts the matcher, or two losses have the same name.
        """
        super().__init__()
        names = [term.name for term in losses]
        if len(set(names)) < len(names):
            raise ValueError(f"the losses of MODEL.SparseRCNN.LOSSES are named {names}: the names must differ")
        self.normalizer = choose_normalizer(type(matcher).__name__, matcher.one_to_many, normalizer)
        self._log = ScalarLog()
        self.cost_model = cost_model
        self.matcher = matcher
        self.losses = nn.ModuleList(losses)
        self.deep_supervision = deep_supervision
        self.start = start

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        cfg = resolved_copy(cfg)
        node = cfg.MODEL.SparseRCNN
        return {
            "cost_model": MatchCostModel(cfg),
            "matcher": build_matcher(cfg),
            "losses": [find_registered(LOSS_REGISTRY, x, "MODEL.SparseRCNN.LOSSES")(cfg) for x in node.LOSSES],
            "deep_supervision": node.DEEP_SUPERVISION,
            "normalizer": node.DLA.NORMALIZER,
            "start": start_criterion(
                node.DPG.START_LOSS_WEIGHT, l1_weight=node.L1_WEIGHT, giou_weight=node.GIOU_WEIGHT
            ),
        }

    def forward(
        self, predictions: StagePredictions, targets: BatchedTargets, *, divisor: Tensor | None = None
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: the predictions of all stages.
            targets: the ground truths of the same images.
            divisor: what the summed losses are divided by if these images are part of a larger batch: the
                :meth:`count` of the whole batch, averaged over ranks, at least 1; float32, (1,), (S,) or (1 + S,).
                None: the count of these images.

        Returns:
            Weighted float32 scalars: the losses of the last stage by name (``loss_ce``, ``loss_bbox``, ``loss_giou``),
            those of earlier stages with the suffix ``_0``, ``_1``, ..., and those of the initial boxes as
            ``loss_start_bbox`` and ``loss_start_giou``.
        """
        matched = self._match(self._supervised(predictions), targets)
        if self.matcher.one_to_many:
            self._log.put(_assignment_scalars(matched.assignment, targets))
        sums = self._sum(matched)
        return sums.divided(average_over_ranks(sums.count) if divisor is None else divisor)

    def sums(self, predictions: StagePredictions, targets: BatchedTargets) -> LossSums:
        """Computes the losses of these images without dividing them, on this rank only, and logs nothing.

        Args:
            predictions: the predictions of all stages.
            targets: the ground truths of the same images.
        """
        return self._sum(self._match(self._supervised(predictions), targets))

    @torch.no_grad()
    def count(self, predictions: StagePredictions, targets: BatchedTargets) -> Tensor:
        """Counts what the losses of these images are divided by, on this rank only.

        The counts of the parts of a batch add up to the count of the batch.

        Returns:
            float32. With the normalizer ``positives``: (S,), the positive proposals of each stage; if the initial boxes
            have losses too, (1 + S,), with the number of ground truths first. Otherwise (1,), the number of ground
            truths.
        """
        count = self.count_targets(targets)
        return self._count(self._match(self._supervised(predictions), targets)) if count is None else count

    def count_targets(self, targets: BatchedTargets) -> Tensor | None:
        """Returns :meth:`count`, (1,) float32, if it depends on the targets only; otherwise None."""
        return None if self.normalizer == "positives" else targets.number

    def _supervised(self, predictions: StagePredictions) -> StagePredictions:
        return predictions if self.deep_supervision else predictions.last

    def _match(self, predictions: StagePredictions, targets: BatchedTargets) -> Matched:
        return Matched(predictions, targets, self.matcher(self.cost_model(predictions, targets)))

    def _sum(self, matched: Matched) -> LossSums:
        with torch.autocast(matched.predictions.boxes.device.type, enabled=False):
            of_stages = {str(term.name): term.weight * term(matched) for term in self.losses}
        return LossSums(of_stages, self._sum_of_start(matched), self._count(matched))

    def _count(self, matched: Matched) -> Tensor:
        count = self.count_targets(matched.targets)
        if count is not None:
            return count
        positives = matched.positive.sum((1, 2)).float()
        return positives if self.start is None else torch.cat([matched.targets.number, positives])

    def _sum_of_start(self, matched: Matched) -> dict[str, Tensor]:
        if self.start is None:
            return {}
        boxes = matched.predictions.initial_boxes
        if boxes is None:
            raise ValueError(
                "MODEL.SparseRCNN.DPG.START_LOSS_WEIGHT is set, but the head's predictions have no initial_boxes"
            )
        start = StagePredictions(boxes.new_zeros(*boxes.shape[:2], 0)[None], boxes[None])
        sums = self.start.sums(start, matched.targets).of_stages
        return {name.replace("loss_", "loss_start_", 1): loss[0] for name, loss in sums.items()}


def start_criterion(weight: float, *, l1_weight: float, giou_weight: float) -> SetCriterion | None:
    """Builds a criterion for the initial boxes, which have no classes: one-to-one matching, L1 and GIoU loss.

    Without it, the initial boxes learn only through the first stage's losses, and nothing asks them to be near objects.
    The matching copies one more cost tensor to the host.

    Args:
        weight: weight of both losses; 0: no criterion.
        l1_weight: weight of L1 in cost and loss.
        giou_weight: weight of GIoU in cost and loss.

    Raises:
        ValueError: ``weight`` is negative.
    """
    if weight < 0:
        raise ValueError(f"MODEL.SparseRCNN.DPG.START_LOSS_WEIGHT is {weight}: it must be 0 or more")
    if weight == 0:
        return None
    return SetCriterion(
        cost_model=MatchCostModel(terms=[L1Cost(weight=l1_weight), GIoUCost(weight=giou_weight)]),
        matcher=HungarianMatcher(),
        losses=[L1Loss(weight=weight * l1_weight), GIoULoss(weight=weight * giou_weight)],
        deep_supervision=True,
    )


def average_over_ranks(count: Tensor) -> Tensor:
    """Averages ``count`` over all ranks, and clamps it to at least 1. Every rank must call this.

    Args:
        count: float32, any shape.

    Returns:
        A tensor of the same shape, equal on all ranks.
    """
    total = count.clone()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)


def _assignment_scalars(assignment: Assignment, targets: BatchedTargets) -> dict[str, Tensor]:
    """Returns statistics of an assignment, as scalars on its device."""
    ground_truths = targets.valid.sum().clamp(min=1)
    positives = assignment.positive.sum((1, 2)) / ground_truths
    gt_index = assignment.gt_index.clamp(min=0)
    owned = torch.zeros((*gt_index.shape[:2], targets.valid.shape[1]), device=gt_index.device)
    owned.scatter_add_(2, gt_index, assignment.positive.float())
    scalars = {
        "dla/positives_per_gt_first_stage": positives[0],
        "dla/positives_per_gt_last_stage": positives[-1],
        "dla/gt_without_proposal": ((owned == 0) & targets.valid).sum() / len(gt_index),
    }
    if assignment.supply is not None:
        scalars["dla/mean_supply"] = assignment.supply.sum() / (ground_truths * len(gt_index))
    if assignment.residual is not None:
        scalars["dla/sinkhorn_residual"] = assignment.residual.max()
    return scalars


def build_criterion(cfg: CfgNode) -> nn.Module:
    """Builds the criterion of the config's detector.

    Raises:
        ValueError: the config contradicts itself, or names a criterion that is not registered.
    """
    cfg = resolved_copy(cfg)
    name = cfg.MODEL.SparseRCNN.CRITERION
    criterion: nn.Module = find_registered(CRITERION_REGISTRY, name, "MODEL.SparseRCNN.CRITERION")(cfg)
    return criterion
