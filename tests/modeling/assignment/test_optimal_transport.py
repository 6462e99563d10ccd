"""The optimal transport matcher against brute force, SciPy and POT."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import ot
import pytest
import torch
from transport_problems import make_costs, make_schedule

from dynamic_sparse_rcnn import (
    BACKGROUND,
    BatchedTargets,
    HungarianMatcher,
    MatchCostModel,
    MatchCosts,
    OptimalTransportMatcher,
    StagePredictions,
)
from dynamic_sparse_rcnn.modeling.assignment.matchers import _give_each_ground_truth_one
from dynamic_sparse_rcnn.modeling.assignment.sinkhorn import sinkhorn


def make_matcher(solver: str, epsilon: float = 0.1, num_iters: int = 200, **schedule) -> OptimalTransportMatcher:
    return OptimalTransportMatcher(
        schedule=make_schedule(**schedule), solver=solver, epsilon=epsilon, num_iters=num_iters
    )


def counts_of(gt_index: torch.Tensor, ground_truths: int) -> torch.Tensor:
    """(..., P) indices to the (..., G) number of proposals of each ground truth."""
    return (gt_index[..., None] == torch.arange(ground_truths)).sum(-2)


def cost_of(cost: torch.Tensor, gt_index: Sequence[int]) -> float:
    return sum(cost[p, g].item() for p, g in enumerate(gt_index) if g != BACKGROUND)


def test_exact_equals_brute_force_over_all_assignments_with_the_demanded_counts():
    for _ in range(5):
        costs = make_costs(1, [2], 6)
        gt_index = make_matcher("exact", fixed_k=2, unit_step=0)(costs).gt_index[0, 0]
        assert counts_of(gt_index, 2).tolist() == [2, 2]
        least = min(
            cost_of(costs.cost[0, 0], choice)
            for choice in itertools.product([BACKGROUND, 0, 1], repeat=6)
            if choice.count(0) == choice.count(1) == 2
        )
        assert cost_of(costs.cost[0, 0], gt_index.tolist()) == pytest.approx(least, abs=1e-5)


@pytest.mark.parametrize("fixed_k", [1, 2, 4])
def test_exact_equals_pots_earth_movers_distance(fixed_k):
    costs = make_costs(2, [5, 3], 40)
    matching = make_matcher("exact", fixed_k=fixed_k, unit_step=0)(costs)
    for stage, image in itertools.product(range(2), range(2)):
        count = int(costs.valid[image].sum())
        cost = costs.cost[stage, image][:, :count]
        rows = np.array([fixed_k] * count + [40 - fixed_k * count], dtype=np.float64)
        table = np.vstack([cost.double().T.numpy(), np.zeros(40)])
        assert cost_of(cost, matching.gt_index[stage, image].tolist()) == pytest.approx(
            ot.emd2(rows, np.ones(40), table), abs=1e-4
        )


def test_one_unit_each_without_growth_is_hungarian_matching():
    costs = make_costs(3, [4, 0, 7, 1], 10)
    exact = make_matcher("exact", fixed_k=1, unit_step=0)(costs)
    assert torch.equal(exact.gt_index, HungarianMatcher()(costs).gt_index)


def test_sinkhorn_comes_near_the_exact_cost():
    costs = make_costs(1, [4], 40)
    cost = costs.cost[0, 0]
    exact, rough = (
        cost_of(cost, make_matcher(s, 0.05, 2000, fixed_k=3, unit_step=0)(costs).gt_index[0, 0].tolist())
        for s in ("exact", "sinkhorn")
    )
    assert rough == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
@pytest.mark.parametrize("ground_truths", [0, 1, 11, 12, 13, 36])
def test_every_ground_truth_gets_a_proposal_while_proposals_suffice(solver, ground_truths):
    costs = make_costs(6, [ground_truths, 2], 12)
    counts = counts_of(make_matcher(solver)(costs).gt_index[:, 0], costs.cost.shape[3])
    assert ((counts > 0).sum(-1) == min(ground_truths, 12)).all()


@pytest.mark.parametrize("ratio", [0.8, 1.0])
def test_supply_of_ground_truths_and_background_is_the_number_of_proposals(monkeypatch, ratio):
    masses = []

    def spy(cost, row_mass, column_mass, **settings):
        masses.append(row_mass)
        return sinkhorn(cost, row_mass, column_mass, **settings)

    monkeypatch.setattr("dynamic_sparse_rcnn.modeling.assignment.matchers.sinkhorn", spy)
    for ground_truths in range(0, 60, 7):
        assignment = make_matcher("sinkhorn", fixed_k=0, ratio=ratio)(make_costs(6, [ground_truths, 3], 50))
        assert (assignment.residual <= 50).all()  # and not NaN
        assert (masses[-1] >= 0).all()
        torch.testing.assert_close(masses[-1].sum(1), torch.full((12,), 50.0))


def test_exact_distributes_the_whole_units_that_it_reports():
    costs = make_costs(1, [5], 25)
    assignment = make_matcher("exact", fixed_k=5, unit_step=0)(costs)
    assert assignment.supply.tolist() == [[[4.0] * 5]]
    assert counts_of(assignment.gt_index, 5).tolist() == [[[4] * 5]]


def test_a_ground_truth_without_a_proposal_takes_the_one_that_raises_the_cost_least():
    cost = torch.tensor([[-9.0, 0.50], [-1, 3], [-1, 3], [5, 0.51], [5, 0.6]])[None, None]
    costs = MatchCosts(cost, torch.zeros_like(cost), torch.ones(1, 2, dtype=torch.bool))
    # Proposal 0 would cost 0.01 less than 3, but ground truth 0 would lose 9.
    assert _give_each_ground_truth_one(torch.tensor([[[0, 0, 0, -1, -1]]]), costs).tolist() == [[[0, 0, 0, 1, -1]]]
    # Without background the ground truth that can spare one gives the one it needs least.
    assert _give_each_ground_truth_one(torch.tensor([[[0, 0, 0, 0, 0]]]), costs).tolist() == [[[0, 0, 0, 1, 0]]]


@pytest.mark.parametrize(
    ("spare", "from_spare", "from_background", "chosen"), [(-5.0, 0.5, 0.6, "background"), (0.3, 0.5, 0.4, "spare")]
)
def test_what_a_proposal_costs_already_counts(spare, from_spare, from_background, chosen):
    cost = torch.tensor([[-9.0, 9.0], [spare, from_spare], [5.0, from_background]])[None, None]
    costs = MatchCosts(cost, torch.zeros_like(cost), torch.ones(1, 2, dtype=torch.bool))
    expected = [0, 1, BACKGROUND] if chosen == "spare" else [0, 0, 1]
    assert _give_each_ground_truth_one(torch.tensor([[[0, 0, BACKGROUND]]]), costs).tolist() == [[expected]]


def test_of_ground_truths_that_want_the_same_proposal_the_cheapest_gets_it_and_the_others_the_next_best():
    cost = torch.tensor([[1.0, 0.5, 0.4, 0.3], [5, 3, 2, 2], [5, 4, 9, 1], [0, 9, 9, 9], [7, 7, 7, 7]])[None, None]
    costs = MatchCosts(cost, torch.zeros_like(cost), torch.ones(1, 4, dtype=torch.bool))
    assert _give_each_ground_truth_one(torch.tensor([[[-1, -1, -1, 0, -1]]]), costs).tolist() == [[[3, 2, 1, 0, -1]]]


def test_four_rounds_settle_what_five_ground_truths_want():
    # The first three proposals are everybody's favorites, and go to one ground truth a round; what remains is clear.
    table = [[-9, -8, -8, -7, -7], [0, -6, -5, -5, -5], [0, 0, -4, -3, -3], [9, 9, 9, 1, 50], [9, 9, 9, 2, 60]]
    cost = torch.tensor([*table, [9, 9, 9, 100, 3]]).float()[None, None]
    costs = MatchCosts(cost, torch.zeros_like(cost), torch.ones(1, 5, dtype=torch.bool))
    assert _give_each_ground_truth_one(torch.full((1, 1, 6), -1), costs).tolist() == [[[0, 1, 2, 3, -1, 4]]]


def increases_by_brute_force(cost: torch.Tensor, gt_index: list[int]) -> dict[tuple[int, int], float]:
    """By how much the total cost would rise, by proposal that is free and ground truth that has none."""
    owned = {g: [p for p, owner in enumerate(gt_index) if owner == g] for g in range(cost.shape[1])}
    kept = [min((cost[p, g].item(), p) for p in proposals)[1] for g, proposals in owned.items() if proposals]
    return {
        (p, g): (cost[p, g] - (cost[p, owner] if owner != BACKGROUND else 0)).item()
        for g in owned
        for p, owner in enumerate(gt_index)
        if not owned[g] and p not in kept
    }


@pytest.mark.parametrize("wanting", [1, 2, 3, 4, 5])
def test_no_proposal_that_stays_free_is_cheaper_than_what_a_ground_truth_gets(wanting):
    ground_truths = wanting + 3
    for _ in range(50):
        # All prefer the same proposals, more or less.
        cost = torch.randn(12, 1) + 0.3 * torch.randn(12, ground_truths)
        costs = MatchCosts(cost[None, None], torch.zeros(1, 1, 12, ground_truths), torch.ones(1, ground_truths) > 0)
        before = (torch.arange(12) % 4 - 1)[None, None]
        after = _give_each_ground_truth_one(before, costs)[0, 0].tolist()
        increases = increases_by_brute_force(cost, before[0, 0].tolist())
        given = {g: p for p, g in enumerate(after) if g >= 3}
        assert len(given) == wanting
        p, g = min(increases, key=lambda pair: increases[pair])
        assert given[g] == p
        free = {p for p, _ in increases} - set(given.values())
        assert all(increases[p, g] <= min(increases[q, g] for q in free) for g, p in given.items())


@pytest.mark.parametrize(("fixed_k", "counts"), [(0, [1, 4, 7]), (4, [2, 1, 20])])
def test_exact_and_sinkhorn_distribute_the_same_mean_supply(fixed_k, counts):
    costs = make_costs(6, counts, 40)
    sinkhorns = make_matcher("sinkhorn", fixed_k=fixed_k)(costs).supply
    exact = make_matcher("exact", fixed_k=fixed_k)
    rounded = torch.stack([exact(costs).supply for _ in range(200)])
    assert torch.equal(rounded, rounded.round())
    assert ((rounded - sinkhorns).abs() < 1).all()  # up or down
    assert ((rounded.sum(-1) - sinkhorns.sum(-1)).abs() < 1 + 1e-5).all()
    # Four standard deviations of the mean of 200 such choices.
    assert (rounded.mean(0) - sinkhorns).abs().max() < 4 * 0.5 / 200**0.5
    assert (sinkhorns % 1 == 0.5).any()


@pytest.mark.parametrize(("ground_truths", "proposals"), [(3, 30), (12, 30), (29, 30), (30, 30), (33, 30)])
@pytest.mark.parametrize("equal", [False, True])
def test_any_assignment_is_mended_so_that_as_many_as_possible_have_one_and_nobody_loses_the_last(
    ground_truths, proposals, equal
):
    shape = (20, 2, proposals, ground_truths)
    # Equal costs: all want the same proposal.
    cost = torch.ones(shape) if equal else torch.randn(shape)
    costs = MatchCosts(cost, torch.zeros(shape), torch.ones(2, ground_truths, dtype=torch.bool))
    # From no ground truth with a proposal, to few that have all, to many that have some.
    most = torch.arange(20)[:, None, None] * ground_truths // 20
    before = (torch.rand(20, 2, proposals) * (most + 1)).long() - 1
    after = _give_each_ground_truth_one(before, costs)
    counts = counts_of(after, ground_truths)
    assert ((counts > 0).sum(-1) == min(ground_truths, proposals)).all()
    assert not ((counts_of(before, ground_truths) > 0) & (counts == 0)).any()
    assert ((before != after).sum(-1) <= ground_truths).all()


def test_ground_truth_comes_before_background_on_a_tie():
    costs = MatchCosts(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1), torch.ones(1, 1, dtype=torch.bool))
    assert make_matcher("sinkhorn", fixed_k=1, unit_step=0)(costs).gt_index.tolist() == [[[0, 0, 0, 0]]]


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
def test_a_batch_equals_one_image_and_stage_at_a_time_and_padding_is_ignored(solver):
    costs = make_costs(2, [5, 0, 2], 16)
    matcher = make_matcher(solver, fixed_k=2, unit_step=0)
    together = matcher(costs)
    for stage, image in itertools.product(range(2), range(3)):
        count = max(1, int(costs.valid[image].sum()))
        cut = (slice(stage, stage + 1), slice(image, image + 1), slice(None), slice(count))
        alone = matcher(MatchCosts(costs.cost[cut], costs.iou[cut], costs.valid[image : image + 1, :count]))
        assert torch.equal(alone.gt_index[0, 0], together.gt_index[stage, image])


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
def test_proposals_with_equal_boxes_leave_no_ground_truth_without_one(solver):
    cost = torch.tensor([-3.0, -2.0]).expand(1, 1, 10, 2).contiguous()
    costs = MatchCosts(cost, torch.full_like(cost, 0.5), torch.ones(1, 2, dtype=torch.bool))
    assert (counts_of(make_matcher(solver)(costs).gt_index, 2) > 0).all()


def test_costs_from_bfloat16_logits_are_matched_in_float32(tiny_cfg, make_instances, make_predictions):
    targets = BatchedTargets.from_instances([make_instances(3)], torch.device("cpu"))
    predictions = make_predictions(2, [(64, 96)], 10)
    model = MatchCostModel(tiny_cfg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = StagePredictions(predictions.logits.bfloat16(), predictions.boxes)
        assignment = make_matcher("sinkhorn")(model(half, targets))
    assert assignment.residual is not None
    assert assignment.residual.dtype == torch.float32
    assert (counts_of(assignment.gt_index, 3) > 0).all()


def test_an_unknown_solver_is_refused_by_name():
    with pytest.raises(ValueError, match=r"DLA\.SOLVER is 'simplex'"):
        make_matcher("simplex")


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"epsilon": -0.1}, {"num_iters": 0}])
def test_settings_of_sinkhorn_that_make_no_sense_are_refused_by_key_before_the_first_step(wrong):
    with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.DLA needs SINKHORN_EPS > 0 and SINKHORN_ITERS >= 1"):
        make_matcher("sinkhorn", **wrong)
