"""Hungarian matching against brute force and SciPy."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dynamic_sparse_rcnn import BACKGROUND, HungarianMatcher, MatchCosts


def make_costs(stages: int, counts: list[int], proposals: int) -> MatchCosts:
    columns = max(1, *counts)
    valid = torch.arange(columns) < torch.tensor(counts)[:, None]
    shape = (stages, len(counts), proposals, columns)
    cost = torch.randn(shape)
    # Padding must not matter, not even if it is cheap.
    cost = torch.where(valid[None, :, None], cost, torch.tensor(-100.0))
    return MatchCosts(cost, torch.rand(shape), valid)


def total(cost: torch.Tensor, gt_index: torch.Tensor) -> float:
    """Of (P, G) costs at (P,) indices, background being free."""
    return sum(cost[p, g].item() for p, g in enumerate(gt_index.tolist()) if g != BACKGROUND)


@pytest.mark.parametrize(("ground_truths", "proposals"), [(1, 4), (3, 5), (4, 4), (5, 3)])
def test_total_cost_is_the_least_of_all_one_to_one_matchings(ground_truths, proposals):
    costs = make_costs(1, [ground_truths], proposals)
    cost = costs.cost[0, 0]
    few, many = sorted([ground_truths, proposals])
    table = cost if proposals <= ground_truths else cost.T
    least = min(
        sum(table[row, column].item() for row, column in enumerate(columns))
        for columns in itertools.permutations(range(many), few)
    )
    gt_index = HungarianMatcher()(costs).gt_index[0, 0]
    assert total(cost, gt_index) == pytest.approx(least, abs=1e-5)
    matched = gt_index[gt_index != BACKGROUND]
    assert len(matched) == len(matched.unique()) == few


def test_every_stage_and_image_equals_scipy_on_its_own_costs():
    costs = make_costs(3, [4, 0, 7, 1], 10)
    gt_index = HungarianMatcher()(costs).gt_index
    for stage, image in itertools.product(range(3), range(4)):
        cost = costs.cost[stage, image][:, costs.valid[image]]
        rows, columns = linear_sum_assignment(cost.double().numpy())
        expected = torch.full((10,), BACKGROUND)
        expected[torch.from_numpy(rows)] = torch.from_numpy(columns)
        assert torch.equal(gt_index[stage, image], expected)


def test_permuting_the_proposals_permutes_the_assignment():
    costs = make_costs(2, [3, 5], 9)
    order = torch.randperm(9)
    permuted = MatchCosts(costs.cost[:, :, order], costs.iou[:, :, order], costs.valid)
    matcher = HungarianMatcher()
    assert torch.equal(matcher(permuted).gt_index, matcher(costs).gt_index[:, :, order])


def test_invalid_columns_between_valid_ones_are_never_assigned():
    costs = make_costs(1, [4], 8)
    valid = torch.tensor([[True, False, True, False]])
    gt_index = HungarianMatcher()(MatchCosts(costs.cost, costs.iou, valid)).gt_index
    assert set(gt_index.flatten().tolist()) == {BACKGROUND, 0, 2}
