"""What an evaluation tells of the initial proposals."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from dynamic_sparse_rcnn.engine.evaluation import with_diagnostics
from dynamic_sparse_rcnn.engine.proposal_evaluator import ProposalEvaluator

# Two boxes to be found and a crowd in the first image, one box in the second.
ANNOTATIONS = [
    [([0, 0, 20, 10], 0), ([50, 50, 10, 10], 0), ([0, 0, 100, 100], 1)],
    [([10, 10, 40, 40], 0)],
]
WEIGHTS = [[[0.5, 0.5], [1.0, 0.0]], [[0.9, 0.1], [1.0, 0.0]]]


class Generator(nn.Module):
    """Gives, at half of the images' size, two boxes an image, with weights of two experts if there are any."""

    def __init__(self, with_experts: bool) -> None:
        super().__init__()
        self.with_experts = with_experts

    def forward(self, inputs):
        proposals = []
        for given in inputs:
            x = Instances((50, 50), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 10, 6], [5, 5, 24, 24]])))
            if self.with_experts:
                x.expert_weights = torch.tensor(WEIGHTS[given["image_id"]])
            proposals.append(x)
        return proposals, {}


@pytest.fixture
def dataset():
    records = []
    for number, content in enumerate(ANNOTATIONS):
        boxes = [{"bbox": b, "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": c} for b, c in content]
        records.append({"image_id": number, "annotations": boxes})
    DatasetCatalog.register("two_images", lambda: records)
    yield "two_images"
    DatasetCatalog.remove("two_images")


def evaluate(dataset: str, with_experts: bool) -> tuple[dict[str, float], Generator]:
    generator = Generator(with_experts)
    loader = [[{"image_id": number, "height": 100, "width": 100}] for number in range(2)]
    return inference_on_dataset(generator, loader, ProposalEvaluator(dataset, generator))["proposals"], generator


def test_recall_counts_ground_truths_in_pixels_of_the_original_image(dataset):
    metrics, _ = evaluate(dataset, with_experts=False)
    assert metrics == {"recall50": pytest.approx(100 * 2 / 3)}


def test_entropy_and_variance_over_the_images_are_those_of_the_weights(dataset):
    metrics, _ = evaluate(dataset, with_experts=True)
    entropy = (math.log(2) - 0.9 * math.log(0.9) - 0.1 * math.log(0.1)) / 4
    assert metrics["weight_entropy"] == pytest.approx(entropy, rel=1e-6)
    assert metrics["weight_variance"] == pytest.approx(0.2**2 / 2, rel=1e-5)


def test_the_generator_is_left_as_it_was(dataset):
    _, generator = evaluate(dataset, with_experts=True)
    assert not generator._forward_hooks


def test_a_data_set_without_ground_truths_has_no_recall():
    DatasetCatalog.register("unknown_truth", lambda: [{"image_id": number} for number in range(2)])
    try:
        metrics, _ = evaluate("unknown_truth", with_experts=False)
    finally:
        DatasetCatalog.remove("unknown_truth")
    assert math.isnan(metrics["recall50"])


def test_only_a_detector_with_proposals_is_evaluated_with_them(dataset):
    class Counter(DatasetEvaluator):
        def evaluate(self):
            return {"counter": {"images": 0.0}}

    plain, detector = Counter(), nn.Module()
    assert with_diagnostics(plain, dataset, detector) is plain
    detector.proposal_generator = Generator(with_experts=False)
    inner = with_diagnostics(plain, dataset, detector)
    inner.reset()
    assert list(inner.evaluate()) == ["proposals", "counter"]
