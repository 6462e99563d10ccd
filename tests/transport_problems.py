"""Matching costs and unit schedules that tests of matchers share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynamic_sparse_rcnn import MatchCosts, UnitSchedule


def make_schedule(fixed_k: int = 0, top_q: int = 8, unit_step: float = 0.5, ratio: float = 0.8) -> UnitSchedule:
    return UnitSchedule(fixed_k=fixed_k, top_q=top_q, unit_step=unit_step, max_positive_ratio=ratio)


def make_costs(stages: int, counts: Sequence[int], proposals: int) -> MatchCosts:
    """Random costs, as spread as real ones are; padding cheap, where it must not matter."""
    columns = max(1, *counts)
    valid = torch.arange(columns) < torch.tensor(counts)[:, None]
    shape = (stages, len(counts), proposals, columns)
    cost = torch.where(valid[None, :, None], 2 * torch.randn(shape), torch.tensor(-100.0))
    return MatchCosts(cost, torch.rand(shape), valid)
