"""The losses of an evaluation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from plain_losses import plain_losses

from dynamic_sparse_rcnn.engine.loss_evaluator import LossEvaluator

# Sizes of images before the resize, which halves them, and their boxes in xyxy with classes and crowds.
SIZES = [(128, 192), (96, 128), (160, 96)]
BOXES: list[list[tuple[list[float], int, int]]] = [
    [([10, 20, 90, 100], 0, 0), ([100, 30, 180, 120], 2, 0), ([0, 0, 190, 120], 1, 1)],
    [],
    [([5.5, 7.25, 60, 150], 1, 0), ([50, 40, 300, 90], 0, 0)],  # beyond the image, as annotations are
]


@pytest.fixture
def dataset(tmp_path):
    records = []
    for number, (size, boxes) in enumerate(zip(SIZES, BOXES, strict=True)):
        file = tmp_path / f"{number}.png"
        file.touch()
        objects = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": c, "iscrowd": i} for b, c, i in boxes]
        record = {"image_id": number, "file_name": str(file), "height": size[0], "width": size[1]}
        records.append({**record, "annotations": objects})
    DatasetCatalog.register("three_images", lambda: records)
    MetadataCatalog.get("three_images").thing_classes = ["a", "b", "c"]
    yield "three_images"
    DatasetCatalog.remove("three_images")
    MetadataCatalog.remove("three_images")


def inputs_of(dataset: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            **{key: record[key] for key in ("image_id", "file_name", "height", "width")},
            "image": torch.randint(
                256, (3, record["height"] // 2, record["width"] // 2), dtype=torch.uint8, generator=generator
            ),
        }
        for record in DatasetCatalog.get(dataset)
    ]


def evaluate(model: Any, dataset: str, batches: list[list[dict[str, Any]]]) -> dict[str, float]:
    results: dict[str, dict[str, float]] = inference_on_dataset(model, batches, LossEvaluator(dataset, model))
    return results["validation"]


def ground_truths(number: int) -> Instances:
    """Of an image in pixels of the network's input, crowds left out; by hand."""
    height, width = SIZES[number]
    instances = Instances((height // 2, width // 2))
    objects = [(box, label) for box, label, crowd in BOXES[number] if not crowd]
    boxes = [[min(x, limit) / 2 for x, limit in zip(box, (width, height) * 2, strict=True)] for box, _ in objects]
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor([label for _, label in objects], dtype=torch.int64)
    return instances


def test_losses_are_those_of_the_whole_set_by_the_plain_loop(tiny_cfg, dataset):
    model = build_model(tiny_cfg).eval()
    inputs = inputs_of(dataset)
    found = evaluate(model, dataset, [[x] for x in inputs])
    expected: Counter[str] = Counter()
    with torch.no_grad():
        for number, one in enumerate(inputs):
            instances = [ground_truths(number)]
            predictions = model.predict(model.preprocess_image([one]))
            for name, loss in plain_losses(predictions, instances).items():
                expected[name] += loss.item() * max(1, len(instances[0])) / 4
    assert found.pop("total_loss") == pytest.approx(sum(found.values()))
    assert found == pytest.approx(dict(expected), rel=1e-4)


@pytest.mark.parametrize("normalizer", ["positives", "num_gt"])
def test_losses_do_not_depend_on_the_batches(tiny_dynamic_cfg, dataset, normalizer):
    tiny_dynamic_cfg.MODEL.SparseRCNN.DLA.NORMALIZER = normalizer
    model = build_model(tiny_dynamic_cfg).eval()
    inputs = inputs_of(dataset)
    for one in inputs:  # of one size: what images of a batch are padded with, features see
        one["image"] = one["image"][:, :48, :48]
    alone = evaluate(model, dataset, [[x] for x in inputs])
    together = evaluate(model, dataset, [inputs[:2], inputs[2:]])
    assert together == pytest.approx(alone, rel=1e-3)
    assert alone["loss_ce"] > 0 and "loss_giou_0" in alone


def test_an_evaluation_logs_nothing_of_a_training_and_leaves_the_head_as_it_was(tiny_dynamic_cfg, dataset):
    model = build_model(tiny_dynamic_cfg)
    with EventStorage() as storage:
        evaluate(model, dataset, [[x] for x in inputs_of(dataset)])
    assert not storage.latest() and not model.head._forward_hooks and model.training


def test_a_model_without_a_criterion_is_an_error(dataset):
    with pytest.raises(ValueError, match=r"TEST\.LOSS .*Linear has none\. Set it False"):
        LossEvaluator(dataset, torch.nn.Linear(1, 1))
