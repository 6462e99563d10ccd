"""Non-maximum suppression of a batch, against a loop over pairs of boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dynamic_sparse_rcnn.deploy.operators import onnx_translations, suppress, suppress_in_onnx

CLASSES, THRESHOLD = 3, 0.4


def make_candidates(images: int, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    corners = 60 * torch.rand(images, number, 2)
    boxes = torch.cat([corners, corners + 20 + 40 * torch.rand(images, number, 2)], dim=-1)
    scores = torch.rand(images, number).sort(dim=1, descending=True).values
    return boxes, scores, torch.randint(CLASSES, (images, number))


def suppress_by_loops(boxes: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
    """Of one image's boxes, best first."""
    corners, keep = boxes.double().numpy(), np.ones(len(boxes), dtype=bool)
    for i in range(len(boxes)):
        for j in range(i):
            sides = np.minimum(corners[i, 2:], corners[j, 2:]) - np.maximum(corners[i, :2], corners[j, :2])
            common = sides.clip(min=0).prod()
            union = sum((corners[k, 2:] - corners[k, :2]).prod() for k in (i, j)) - common
            keep[i] &= not (keep[j] and classes[i] == classes[j] and common > THRESHOLD * union)
    return keep


class Suppressing(nn.Module):
    def forward(self, boxes, scores, classes):
        return suppress_in_onnx(boxes, scores, classes, CLASSES, THRESHOLD)


@pytest.fixture(scope="module")
def onnx_session(tmp_path_factory):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("suppression") / "nms.onnx"
    dynamic = {0: torch.export.Dim("images"), 1: torch.export.Dim("boxes")}
    torch.onnx.export(
        Suppressing().eval(),
        make_candidates(2, 5),
        dynamo=True,
        verbose=False,
        input_names=["boxes", "scores", "classes"],
        dynamic_shapes=(dynamic, dynamic, dynamic),
        custom_translation_table=onnx_translations(),
    ).save(path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("images", "number"), [(1, 1), (2, 7), (4, 60)])
def test_torch_and_onnx_keep_what_a_loop_keeps(onnx_session, images, number):
    boxes, scores, classes = make_candidates(images, number)
    expected = np.stack([suppress_by_loops(*x) for x in zip(boxes, classes, strict=True)])
    assert number < 60 or 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(suppress(boxes, scores, classes, CLASSES, THRESHOLD), expected)
    feed = {"boxes": boxes.numpy(), "scores": scores.numpy(), "classes": classes.numpy()}
    np.testing.assert_array_equal(onnx_session.run(None, feed)[0], expected)


def test_many_classes_and_images_take_no_pixels_from_the_boxes():
    # One pixel of 2000 decides: moved apart in float32, the last class's boxes would be rounded to it.
    box = torch.tensor([1000.0, 1000.0, 1003.0, 1003.0])
    boxes = torch.stack([box, box + torch.tensor([0.0, 0.0, 0.0, 0.24])]).repeat(16, 1, 1)
    scores, classes = torch.tensor([[0.9, 0.8]]).repeat(16, 1), torch.full((16, 2), 1000)
    iou = 3 / 3.24
    assert not suppress(boxes, scores, classes, 1001, iou - 0.001)[:, 1].any()
    assert suppress(boxes, scores, classes, 1001, iou + 0.001).all()
