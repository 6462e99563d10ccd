"""The released detector of shapes finds the same, exported and not."""

from __future__ import annotations

import pytest
import torch
from exported_detections import assert_same_detections, make_feed, run_detector, run_onnx, run_openvino

from dynamic_sparse_rcnn.data.shape_images import ShapesConfig, draw_image

RUNNERS = {"onnxruntime": run_onnx, "openvino": run_openvino}


@pytest.fixture(params=RUNNERS)
def run_exported(request):
    pytest.importorskip(request.param)
    return RUNNERS[request.param]


def draw_shapes(number: int) -> list[torch.Tensor]:
    config = ShapesConfig(num_images=number, image_size=128)
    images = [draw_image(config, "val", index + 1).pixels for index in range(number)]
    return [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]


def test_a_batch_of_several_sizes_gives_the_same_detections(shapes_detector, shapes_onnx, run_exported):
    images = [
        image[:, :height, :width]
        for image, height, width in zip(draw_shapes(3), (128, 100, 97), (90, 128, 97), strict=True)
    ]
    original_sizes = [(256, 180), (50, 64), (97, 970)]
    expected = run_detector(shapes_detector, images, original_sizes)
    assert_same_detections(expected, run_exported(shapes_onnx, make_feed(images, original_sizes, 32)))


@pytest.mark.parametrize(("number", "side"), [(1, 128), (5, 64), (2, 192)])
def test_number_and_size_of_the_images_are_free(shapes_detector, shapes_onnx, run_exported, number, side):
    images = [torch.nn.functional.interpolate(x[None], side)[0] for x in draw_shapes(number)]
    expected = run_detector(shapes_detector, images, [(128, 128)] * number)
    assert_same_detections(expected, run_exported(shapes_onnx, make_feed(images, [(128, 128)] * number, 32)))
