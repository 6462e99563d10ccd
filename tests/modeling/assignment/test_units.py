"""The units of each ground truth, against a loop over stages, images and ground truths in plain Python."""

from __future__ import annotations

import pytest
import torch
from transport_problems import make_costs, make_schedule

from dynamic_sparse_rcnn import MatchCosts


def expected_units(costs: MatchCosts, fixed_k: int, top_q: int, step: float, ratio: float) -> list:
    """Of one stage, image and ground truth after the other; scaled as the paper says, but nobody below one unit."""
    stages, images, proposals, ground_truths = costs.iou.shape
    table = torch.zeros(stages, images, ground_truths)
    for stage in range(1, stages + 1):
        for image in range(images):
            valid = costs.valid[image].nonzero()[:, 0].tolist()
            units = {}
            for g in valid:
                best = sorted(costs.iou[stage - 1, image, :, g].tolist(), reverse=True)[:top_q]
                units[g] = max(1, (fixed_k or max(1, int(sum(best)))) - step * (stages - stage))
            most = ratio * proposals
            if sum(units.values()) > most:
                above = sum(units.values()) - len(valid)
                share = (most - len(valid)) / above if above and most > len(valid) else 0
                units = {g: min(1, most / len(valid)) + share * (k - 1) for g, k in units.items()}
            for g, k in units.items():
                table[stage - 1, image, g] = k
    return table.tolist()


@pytest.mark.parametrize("fixed_k", [0, 1, 5])
@pytest.mark.parametrize("step", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ratio", [0.8, 1.0])
def test_units_are_those_of_the_formula(fixed_k, step, ratio):
    costs = make_costs(6, [0, 1, 3, 7, 17, 20, 30], 20)
    found = make_schedule(fixed_k=fixed_k, unit_step=step, ratio=ratio)(costs)
    expected = torch.tensor(expected_units(costs, fixed_k, 8, step, ratio))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_dynamic_units_are_the_sum_of_the_best_ious_rounded_down_and_at_least_one():
    iou = torch.zeros(1, 1, 20, 3)
    iou[0, 0, :10, 0] = 0.5  # the best 8: 4.0
    iou[0, 0, :3, 1] = torch.tensor([0.9, 0.8, 0.7])  # 2.4
    costs = MatchCosts(torch.zeros_like(iou), iou, torch.ones(1, 3, dtype=torch.bool))
    assert make_schedule()(costs).tolist() == [[[4, 2, 1]]]


def test_units_grow_by_the_step_from_stage_to_stage_and_end_at_k():
    costs = make_costs(6, [2], 50)
    units = make_schedule(fixed_k=3)(costs)
    assert units[:, 0, 0].tolist() == [1, 1, 1.5, 2, 2.5, 3]
    same_iou = MatchCosts(costs.cost, costs.iou[:1].expand(6, -1, -1, -1), costs.valid)
    assert (make_schedule()(same_iou).diff(dim=0) >= 0).all()


@pytest.mark.parametrize(("ground_truths", "proposals"), [(40, 50), (50, 50), (51, 50), (150, 50)])
def test_units_never_exceed_the_largest_share_of_the_proposals(ground_truths, proposals):
    units = make_schedule(fixed_k=5)(make_costs(6, [ground_truths], proposals))
    assert (units.sum(-1) <= 0.8 * proposals + 1e-3).all()
    assert (units > 0).all()


@pytest.mark.parametrize("ground_truths", [2, 5, 9, 16])
def test_no_ground_truth_gets_less_than_one_unit_while_the_share_allows_it(ground_truths):
    costs = make_costs(6, [ground_truths], 20)
    units = make_schedule(top_q=8)(MatchCosts(costs.cost, 0.8 + 0.2 * costs.iou, costs.valid))
    assert (units >= 1 - 1e-5).all()
    assert (units.sum(-1) <= 16 + 1e-4).all()


def test_padding_gets_no_units():
    units = make_schedule()(make_costs(2, [1, 0, 4], 20))
    assert (units > 0).sum(-1).tolist() == [[1, 0, 4]] * 2


def test_of_fewer_proposals_than_top_q_all_count():
    costs = make_costs(2, [1, 2], 3)
    best = MatchCosts(costs.cost, torch.full_like(costs.iou, 0.9), costs.valid)
    assert make_schedule(top_q=8, unit_step=0, ratio=1.0)(best).tolist() == [[[2, 0], [1.5, 1.5]]] * 2


@pytest.mark.parametrize("wrong", [{"fixed_k": -1}, {"top_q": 0}, {"unit_step": -0.5}, {"ratio": 0}, {"ratio": 1.5}])
def test_a_schedule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.DLA needs"):
        make_schedule(**wrong)
