"""The losses of all stages and images at once equal those of a plain loop."""

from __future__ import annotations

import pytest
import torch
from plain_losses import plain_losses

from dynamic_sparse_rcnn import Assignment, BatchedTargets, MatchCosts, Matcher, SetCriterion, StagePredictions

CPU = torch.device("cpu")


@pytest.mark.parametrize("counts", [[3, 0, 6], [1], [0, 0], [12, 2]])
def test_losses_equal_a_float64_loop_over_stages_and_images(tiny_cfg, make_instances, make_predictions, counts):
    sizes = [(64 + 8 * i, 96 - 4 * i) for i in range(len(counts))]
    instances = [make_instances(n, size) for n, size in zip(counts, sizes, strict=True)]
    predictions = make_predictions(6, sizes, 10, requires_grad=True)
    losses = SetCriterion(tiny_cfg)(predictions, BatchedTargets.from_instances(instances, CPU))
    expected = plain_losses(predictions, instances)
    assert losses.keys() == expected.keys()
    assert len(losses) == 18
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name


def test_gradients_equal_those_of_the_float64_loop(tiny_cfg, make_instances, make_predictions):
    instances = [make_instances(3), make_instances(1)]
    predictions = make_predictions(2, [(64, 96)] * 2, 6, requires_grad=True)
    losses = SetCriterion(tiny_cfg)(predictions, BatchedTargets.from_instances(instances, CPU))
    sum(losses.values()).backward()
    expected = StagePredictions(
        *(x.detach().double().requires_grad_() for x in (predictions.logits, predictions.boxes))
    )
    sum(plain_losses(expected, instances).values()).backward()
    torch.testing.assert_close(predictions.logits.grad.double(), expected.logits.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(predictions.boxes.grad.double(), expected.boxes.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("counts", [[3, 0], [0, 0]])
def test_gradients_are_finite_and_reach_all_predictions(tiny_cfg, make_instances, make_predictions, counts):
    predictions = make_predictions(2, [(64, 96)] * 2, 5, requires_grad=True)
    targets = BatchedTargets.from_instances([make_instances(n) for n in counts], CPU)
    sum(SetCriterion(tiny_cfg)(predictions, targets).values()).backward()
    assert predictions.logits.grad.isfinite().all()
    assert predictions.logits.grad.abs().amin() > 0
    assert predictions.boxes.grad.isfinite().all()
    learning = (predictions.boxes.grad.abs().sum(-1) > 0).sum((0, 2))
    assert learning.tolist() == [2 * n for n in counts]


def test_without_deep_supervision_only_the_last_stage_learns(tiny_cfg, make_instances, make_predictions):
    tiny_cfg.MODEL.SparseRCNN.DEEP_SUPERVISION = False
    predictions = make_predictions(3, [(64, 96)], 5, requires_grad=True)
    instances = [make_instances(2)]
    losses = SetCriterion(tiny_cfg)(predictions, BatchedTargets.from_instances(instances, CPU))
    assert set(losses) == {"loss_ce", "loss_bbox", "loss_giou"}
    sum(losses.values()).backward()
    assert not predictions.logits.grad[:2].any()
    last = plain_losses(predictions, instances)
    assert losses["loss_ce"].item() == pytest.approx(last["loss_ce"].item(), rel=1e-5)


def test_half_precision_logits_give_float32_losses(tiny_cfg, make_instances, make_predictions):
    predictions = make_predictions(2, [(64, 96)], 5)
    half = StagePredictions(predictions.logits.bfloat16(), predictions.boxes)
    targets = BatchedTargets.from_instances([make_instances(2)], CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = SetCriterion(tiny_cfg)(half, targets)
    exact = SetCriterion(tiny_cfg)(StagePredictions(half.logits.float(), half.boxes), targets)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for name, loss in exact.items():
        torch.testing.assert_close(losses[name], loss)


def test_a_divisor_takes_the_place_of_the_count(tiny_cfg, make_instances, make_predictions):
    criterion = SetCriterion(tiny_cfg)
    predictions = make_predictions(2, [(64, 96)] * 2, 5)
    targets = BatchedTargets.from_instances([make_instances(3), make_instances(1)], CPU)
    counted = criterion(predictions, targets)
    divided = criterion(predictions, targets, divisor=torch.tensor([10.0, 20.0]))
    assert criterion.count(predictions, targets).tolist() == [4]
    for name, loss in counted.items():
        torch.testing.assert_close(divided[name], loss * 4 / (10 if name.endswith("_0") else 20), msg=name)


class FixedMatcher(Matcher):
    """Always gives the same assignment."""

    one_to_many = False

    def __init__(self, assignment: Assignment) -> None:
        super().__init__()
        self.assignment = assignment

    def forward(self, costs: MatchCosts) -> Assignment:
        return self.assignment


def test_weights_of_the_config_weight_costs_and_losses(tiny_cfg, make_instances, make_predictions):
    predictions = make_predictions(2, [(64, 96)], 6)
    targets = BatchedTargets.from_instances([make_instances(6)], CPU)  # as many as proposals: all are matched
    plain = SetCriterion(tiny_cfg)
    node = tiny_cfg.MODEL.SparseRCNN
    node.CLASS_WEIGHT, node.L1_WEIGHT, node.GIOU_WEIGHT, node.ALPHA, node.GAMMA = 6.0, 1.0, 0.5, 0.4, 1.5
    weighted = SetCriterion(tiny_cfg)
    costs = {type(term).__name__: term for term in weighted.cost_model.terms}
    assert {name: term.weight for name, term in costs.items()} == {"ClassCost": 6.0, "L1Cost": 1.0, "GIoUCost": 0.5}
    for term in (costs["ClassCost"], weighted.losses[0]):
        assert (term.alpha, term.gamma) == (0.4, 1.5)
    weighted.losses[0].alpha, weighted.losses[0].gamma = 0.25, 2.0
    same = FixedMatcher(Assignment(torch.arange(6).expand(2, 1, 6)))
    weighted.matcher = plain.matcher = same
    factors = {"loss_ce": 3.0, "loss_bbox": 0.2, "loss_giou": 0.25}
    before = plain(predictions, targets)
    for name, loss in weighted(predictions, targets).items():
        torch.testing.assert_close(loss, factors[name.removesuffix("_0")] * before[name], msg=name)
