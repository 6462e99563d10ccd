"""What an evaluation tells of the initial proposals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from torch import nn

from dynamic_sparse_rcnn.engine.evaluation import with_diagnostics
from dynamic_sparse_rcnn.engine.proposal_evaluator import ProposalEvaluator

# Two boxes to be found and a crowd in the first image, one box in the second.
BOXES = [[[0.0, 0, 10, 5], [25, 25, 30, 30], [0, 0, 50, 50]], [[5.0, 5, 25, 25]]]
CROWD = [[False, False, True], [False]]
WEIGHTS = [[[0.5, 0.5], [1.0, 0.0]], [[0.9, 0.1], [1.0, 0.0]]]


class Generator(nn.Module):
    """Gives two boxes an image, with weights of two experts if there are any."""

    def __init__(self, with_experts: bool) -> None:
        super().__init__()
        self.with_experts = with_experts

    def forward(self, inputs):
        proposals = []
        for given in inputs:
            x = Instances((50, 50), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 10, 6], [5, 5, 24, 24]])))
            if self.with_experts:
                x.expert_weights = torch.tensor(WEIGHTS[given["number"]])
            proposals.append(x)
        return proposals, {}


def ground_truths(number: int) -> Instances:
    boxes, crowd = torch.tensor(BOXES[number]), torch.tensor(CROWD[number])
    return Instances((50, 50), gt_boxes=Boxes(boxes), gt_is_crowd=crowd)


def evaluate(with_experts: bool, inputs: Any = None) -> tuple[dict[str, float], Generator]:
    generator = Generator(with_experts)
    loader = [[inputs or {"number": number, "instances": ground_truths(number)}] for number in range(2)]
    return inference_on_dataset(generator, loader, ProposalEvaluator(generator))["proposals"], generator


def test_recall_counts_ground_truths_but_no_crowds():
    metrics, _ = evaluate(with_experts=False)
    assert metrics == {"recall50": pytest.approx(100 * 2 / 3)}


def test_entropy_and_variance_over_the_images_are_those_of_the_weights():
    metrics, _ = evaluate(with_experts=True)
    entropy = (math.log(2) - 0.9 * math.log(0.9) - 0.1 * math.log(0.1)) / 4
    assert metrics["weight_entropy"] == pytest.approx(entropy, rel=1e-6)
    assert metrics["weight_variance"] == pytest.approx(0.2**2 / 2, rel=1e-5)


def test_the_generator_is_left_as_it_was():
    _, generator = evaluate(with_experts=True)
    assert not generator._forward_hooks


def test_without_ground_truths_there_is_no_recall():
    metrics, _ = evaluate(with_experts=False, inputs={"number": 0})
    assert math.isnan(metrics["recall50"])


def test_only_a_detector_with_proposals_is_evaluated_with_them():
    class Counter(DatasetEvaluator):
        def evaluate(self):
            return {"counter": {"images": 0.0}}

    plain, detector = Counter(), nn.Module()
    assert with_diagnostics(plain, detector) is plain
    detector.proposal_generator = Generator(with_experts=False)
    inner = with_diagnostics(plain, detector)
    inner.reset()
    assert list(inner.evaluate()) == ["proposals", "counter"]
