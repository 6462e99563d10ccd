"""Matchers: which ground truth each proposal learns from, as a pure function of the costs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from scipy.optimize import linear_sum_assignment
from torch import nn

from .structures import BACKGROUND, Assignment, MatchCosts

MATCHER_REGISTRY = Registry("MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers, chosen by ``MODEL.SparseRCNN.MATCHER`` and built by ``MATCHER_REGISTRY.get(name)(cfg)``.
A matcher is a :class:`Matcher`.
"""


class Matcher(nn.Module, ABC):
    """Turns the costs of all stages and images into an assignment. Learns nothing, has no gradient."""

    @abstractmethod
    def forward(self, costs: MatchCosts) -> Assignment:
        """Assigns a ground truth or background to each proposal of each stage and image."""


@MATCHER_REGISTRY.register()
class HungarianMatcher(Matcher):
    """One-to-one matching at the least total cost, by SciPy's rectangular assignment.

    Each ground truth gets one proposal. Where there are more ground truths than proposals, each
    proposal gets one, so that the total cost is least, and the other ground truths get none.
    """

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


def build_matcher(cfg: CfgNode) -> Matcher:
    """Builds the matcher that ``MODEL.SparseRCNN.MATCHER`` names."""
    return MATCHER_REGISTRY.get(cfg.MODEL.SparseRCNN.MATCHER)(cfg)
