"""The released detector of shapes finds the same, exported and not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exported_detections import assert_same_detections, make_feed, run_detector, run_onnx, run_openvino

from dynamic_sparse_rcnn.data.shape_images import ShapesConfig, draw_image
from dynamic_sparse_rcnn.deploy.backends import ExportedDetector

RUNNERS = {"shapes_onnx": run_onnx, "shapes_openvino": run_openvino}


def draw_shapes(number: int) -> list[torch.Tensor]:
    config = ShapesConfig(num_images=number, image_size=128)
    images = [draw_image(config, "val", index + 1).pixels for index in range(number)]
    return [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]


@pytest.mark.parametrize("file", RUNNERS)
def test_a_batch_of_several_sizes_gives_the_same_detections(shapes_detector, file, request):
    images = [
        image[:, :height, :width]
        for image, height, width in zip(draw_shapes(3), (128, 100, 97), (90, 128, 97), strict=True)
    ]
    original_sizes = [(256, 180), (50, 64), (97, 970)]
    expected = run_detector(shapes_detector, images, original_sizes)
    feed = make_feed(images, original_sizes, 32)
    assert_same_detections(expected, RUNNERS[file](request.getfixturevalue(file), feed))


@pytest.mark.parametrize(("number", "side"), [(1, 128), (5, 64), (2, 192)])
@pytest.mark.parametrize("file", RUNNERS)
def test_number_and_size_of_the_images_are_free(shapes_detector, file, number, side, request):
    images = [torch.nn.functional.interpolate(x[None], side)[0] for x in draw_shapes(number)]
    expected = run_detector(shapes_detector, images, [(128, 128)] * number)
    feed = make_feed(images, [(128, 128)] * number, 32)
    assert_same_detections(expected, RUNNERS[file](request.getfixturevalue(file), feed))


def test_openvinos_bfloat16_keeps_the_boxes(shapes_detector, shapes_openvino):
    """Features are rounded, but not RoIs: rounded to bfloat16 they would be off by half a pixel here."""
    images = draw_shapes(8)
    expected = run_detector(shapes_detector, images, [(128, 128)] * 8)
    found = ExportedDetector(shapes_openvino, precision="bfloat16")([{"image": x} for x in images])
    errors = []
    for image, output in zip(expected, found, strict=True):
        for box, score, category in zip(image.pred_boxes.tensor, image.scores, image.pred_classes, strict=True):
            if score > 0.3:
                boxes = output["instances"].pred_boxes.tensor[output["instances"].pred_classes == category]
                errors.append((boxes - box).abs().amax(1).min().item())
    assert 0 < np.mean(errors) < 0.4
