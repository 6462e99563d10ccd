"""Metadata of two exported detectors; runs such, and compares their detections with a detector's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from dynamic_sparse_rcnn import __version__
from dynamic_sparse_rcnn.checkpoints.released import find_released
from dynamic_sparse_rcnn.deploy.metadata import ExportMetadata
from dynamic_sparse_rcnn.prediction.loading import DEFAULT_CONFIG

RELEASED = find_released(DEFAULT_CONFIG)
assert RELEASED is not None
SHAPES = ExportMetadata(
    sparse_rcnn_version=__version__,
    checkpoint_sha256=RELEASED.sha256,
    class_names=("circle", "square", "triangle", "star", "ring"),
    category_ids=(1, 2, 3, 4, 5),
    image_format="RGB",
    size=None,
    divisibility=32,
    short_edge=128,
    max_size=1333,
    score_threshold=0.5,
    nms_threshold=0.7,
    nms_inside=True,
    num_detections=100,
)
TINY = replace(
    SHAPES,
    class_names=("ant", "bee", "cat"),
    category_ids=(2, 3, 5),
    image_format="BGR",
    size=(64, 96),
    short_edge=0,
    nms_threshold=0.5,
    nms_inside=False,
    num_detections=9,
)

SCORES_WITHIN, PIXELS_WITHIN, LOWEST_SCORE = 1e-3, 0.1, 0.05


def run_onnx(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


def run_openvino(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(compiled(feed).values())


def make_feed(images: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]], unit: int) -> dict[str, np.ndarray]:
    """Pads (3, H, W) uint8 images; with garbage, which an exported detector must not look at."""
    sizes = np.array([x.shape[1:] for x in images])
    height, width = -(-sizes.max(0) // unit) * unit
    batch = np.random.default_rng(0).integers(0, 256, (len(images), 3, height, width), dtype=np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image.numpy()
    return {"images": batch, "image_sizes": sizes, "original_sizes": np.array(original_sizes)}


@torch.no_grad()
def run_detector(
    detector: nn.Module, images: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]]
) -> list[Instances]:
    inputs = [
        {"image": x, "height": height, "width": width}
        for x, (height, width) in zip(images, original_sizes, strict=True)
    ]
    return [x["instances"] for x in detector(inputs)]


def assert_same_detections(
    expected: Sequence[Instances], found: Sequence[np.ndarray], lowest_score: float = LOWEST_SCORE
) -> None:
    """The same classes, scores and boxes in the same order, of all detections that are not very weak."""
    assert len(found[0]) == len(expected)
    for image, boxes, scores, classes in zip(expected, *found, strict=True):
        strong = int((image.scores > lowest_score).sum())
        assert (scores > lowest_score).sum() == strong > 0
        np.testing.assert_array_equal(classes[:strong], image.pred_classes[:strong])
        np.testing.assert_allclose(scores[:strong], image.scores[:strong], rtol=0, atol=SCORES_WITHIN)
        np.testing.assert_allclose(boxes[:strong], image.pred_boxes.tensor[:strong], rtol=0, atol=PIXELS_WITHIN)
        assert (classes >= 0).sum() == (scores > 0).sum() == len(image)
