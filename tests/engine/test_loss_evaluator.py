"""The losses of an evaluation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from plain_losses import plain_losses

from dynamic_sparse_rcnn.engine.loss_evaluator import LossEvaluator
from dynamic_sparse_rcnn.modeling.structures import BatchedTargets

# Sizes of images before the resize, which halves them, and their boxes in xyxy with classes.
SIZES = [(128, 192), (96, 128), (160, 96)]
BOXES: list[list[tuple[list[float], int]]] = [
    [([10, 20, 90, 100], 0), ([100, 30, 180, 120], 2)],
    [],
    [([5.5, 7.25, 60, 150], 1), ([50, 40, 90, 90], 0)],
]


def make_inputs() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(256, (3, height // 2, width // 2), dtype=torch.uint8, generator=generator),
            "instances": ground_truths(number),
            "height": height,
            "width": width,
        }
        for number, (height, width) in enumerate(SIZES)
    ]


def evaluate(model: Any, batches: list[list[dict[str, Any]]]) -> dict[str, float]:
    results: dict[str, dict[str, float]] = inference_on_dataset(model, batches, LossEvaluator(model))
    return results["validation"]


def ground_truths(number: int) -> Instances:
    """Of an image in pixels of the network's input."""
    height, width = SIZES[number]
    instances = Instances((height // 2, width // 2))
    boxes = [[x / 2 for x in box] for box, _ in BOXES[number]]
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor([label for _, label in BOXES[number]], dtype=torch.int64)
    return instances


def test_losses_are_those_of_the_whole_set_by_the_plain_loop(tiny_cfg):
    model = build_model(tiny_cfg).eval()
    inputs = make_inputs()
    found = evaluate(model, [[x] for x in inputs])
    expected: Counter[str] = Counter()
    with torch.no_grad():
        for number, one in enumerate(inputs):
            instances = [ground_truths(number)]
            predictions = model.predict(model.preprocess_image([one]))
            for name, loss in plain_losses(predictions, instances).items():
                expected[name] += loss.item() * max(1, len(instances[0])) / 4
    assert found.pop("total_loss") == pytest.approx(sum(found.values()))
    assert found == pytest.approx(dict(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("normalizer", "start"), [("positives", 0.0), ("num_gt", 0.0), ("positives", 1.0), ("num_gt", 1.0)]
)
def test_losses_do_not_depend_on_the_batches_and_are_the_criterions(tiny_dynamic_cfg, normalizer, start):
    tiny_dynamic_cfg.MODEL.SparseRCNN.DLA.NORMALIZER = normalizer
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.START_LOSS_WEIGHT = start
    model = build_model(tiny_dynamic_cfg).eval()
    inputs = make_inputs()
    for one in inputs:  # of one size: what images of a batch are padded with, features see
        one["image"] = one["image"][:, :48, :48]
    alone = evaluate(model, [[x] for x in inputs])
    together = evaluate(model, [inputs[:2], inputs[2:]])
    assert together == pytest.approx(alone, rel=1e-3)
    assert alone["loss_ce"] > 0 and "loss_giou_0" in alone and ("loss_start_giou" in alone) == bool(start)
    del alone["total_loss"]
    with torch.no_grad():
        predictions = model.predict(model.preprocess_image(inputs))
        losses = model.criterion(
            predictions, BatchedTargets.from_instances([x["instances"] for x in inputs], model.device)
        )
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(alone, rel=1e-3)


def test_an_evaluation_logs_nothing_of_a_training_and_leaves_the_head_as_it_was(tiny_dynamic_cfg):
    model = build_model(tiny_dynamic_cfg)
    with EventStorage() as storage:
        evaluate(model, [[x] for x in make_inputs()])
    assert not storage.latest() and not model.head._forward_hooks and model.training


def test_a_model_without_a_criterion_is_an_error():
    with pytest.raises(ValueError, match=r"TEST\.LOSS .*Linear lacks one of them\. Set it to False"):
        LossEvaluator(torch.nn.Linear(1, 1))


def test_images_without_annotations_are_an_error(tiny_cfg):
    inputs = [{key: value for key, value in one.items() if key != "instances"} for one in make_inputs()]
    with pytest.raises(ValueError, match=r"TEST\.LOSS .*needs images with annotations, and a mapper that keeps them"):
        evaluate(build_model(tiny_cfg).eval(), [inputs])
