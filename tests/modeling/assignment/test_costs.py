"""Costs equal those written out for one pair at a time, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from generated_boxes import random_boxes
from torchvision.ops import box_iou, generalized_box_iou

from dynamic_sparse_rcnn import BatchedTargets, ClassCost, GIoUCost, L1Cost, MatchCostModel
from dynamic_sparse_rcnn.modeling.assignment.costs import box_iou_and_giou

# None of them the default, and no two alike.
COST_MODEL = MatchCostModel(
    terms=[ClassCost(weight=3.0, alpha=0.4, gamma=1.5), L1Cost(weight=7.0), GIoUCost(weight=0.5)]
)


def test_iou_and_giou_equal_torchvisions():
    first, second = random_boxes(20, 50, 70), random_boxes(30, 50, 70)
    iou, giou = box_iou_and_giou(first[:, None], second[None])
    torch.testing.assert_close(iou, box_iou(first, second))
    torch.testing.assert_close(giou, generalized_box_iou(first, second))


def test_empty_boxes_give_finite_iou_giou_and_gradients():
    empty = torch.zeros(1, 4, requires_grad=True)
    iou, giou = box_iou_and_giou(empty, torch.zeros(1, 4))
    (iou + giou).sum().backward()
    assert iou.item() == 0
    assert giou.isfinite().all()
    assert empty.grad is not None
    assert empty.grad.isfinite().all()


def focal_cost(logit: float) -> float:
    """The focal terms of arXiv 1708.02002 for a positive and a negative, with alpha 0.4 and gamma 1.5."""
    p = 1 / (1 + math.exp(-logit))
    return -0.4 * (1 - p) ** 1.5 * math.log(p) + 0.6 * p**1.5 * math.log(1 - p)


def test_costs_equal_a_float64_loop_over_pairs(make_instances, make_predictions):
    sizes = [(64, 96), (40, 30)]
    targets = BatchedTargets.from_instances(
        [make_instances(n, size) for n, size in zip([4, 2], sizes, strict=True)], torch.device("cpu")
    )
    predictions = make_predictions(3, sizes, 6)
    costs = COST_MODEL(predictions, targets)
    assert costs.cost.dtype == torch.float32
    for s, b, p, g in torch.cartesian_prod(*map(torch.arange, costs.cost.shape)).tolist():
        if not targets.valid[b, g]:
            continue
        box, wanted = predictions.boxes[s, b, p].double(), targets.boxes[b, g].double()
        scale = torch.tensor([sizes[b][1], sizes[b][0]] * 2, dtype=torch.float64)
        l1 = (box / scale - wanted / scale).abs().sum()
        giou = generalized_box_iou(box[None], wanted[None])[0, 0]
        expected = 3 * focal_cost(predictions.logits[s, b, p, targets.classes[b, g]].item()) + 7 * l1 - 0.5 * giou
        assert costs.cost[s, b, p, g].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def test_extreme_logits_cost_what_the_focal_loss_tends_to_and_half_precision_ones_are_exact(
    make_instances, make_predictions
):
    targets = BatchedTargets.from_instances([make_instances(3)], torch.device("cpu"))
    predictions = make_predictions(1, [(64, 96)], 4)
    signs = predictions.logits.sign()
    extreme = type(predictions)(signs * 1e4, predictions.boxes)
    # Sure of the class: only background costs, 0.6 a unit of the logit; sure of background: only the class, 0.4.
    of_class = 3 * torch.where(signs > 0, -0.6e4, 0.4e4)[..., targets.classes[0]]
    of_boxes = MatchCostModel(terms=[L1Cost(weight=7.0), GIoUCost(weight=0.5)])(predictions, targets).cost
    torch.testing.assert_close(COST_MODEL(extreme, targets).cost, of_class + of_boxes)
    half = type(predictions)(predictions.logits.bfloat16(), predictions.boxes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        costs = COST_MODEL(half, targets)
    exact = COST_MODEL(type(predictions)(half.logits.float(), half.boxes), targets)
    assert torch.equal(costs.cost, exact.cost)


def test_all_weights_zero_are_refused():
    with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.COSTS .* CLASS_WEIGHT"):
        MatchCostModel(terms=[L1Cost(weight=0.0), GIoUCost(weight=0.0)])
