"""Files that do not give what their detector gives are found, and take no other file's place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exported_detections import TINY

from dynamic_sparse_rcnn.deploy.verification import find_difference, verified_file

BOXES = np.array([[0, 0, 50, 50], [10, 10, 90, 90], [20, 0, 40, 40], [5, 5, 8, 8]], np.float32)
SCORES = np.array([0.9, 0.7, 0.69999, 0.2], np.float32)
CLASSES = np.array([1, 0, 2, 1])


def differing(boxes: np.ndarray = BOXES, scores: np.ndarray = SCORES, classes: np.ndarray = CLASSES) -> str:
    return find_difference((BOXES, SCORES, CLASSES), (boxes, scores, classes), box_tolerance=0.1)


def test_rounding_is_no_difference():
    assert differing(BOXES + 0.05, SCORES + 1e-5) == ""


def test_wrong_scores_classes_and_boxes_are_told():
    assert differing(scores=SCORES + 1e-3) == "scores differ by 1.0e-03"
    assert differing(scores=SCORES * np.nan) == "scores differ by nan"
    assert differing(classes=np.array([2, 0, 2, 1])) == "classes differ"
    assert differing(boxes=BOXES + np.array([[1], [0], [0], [0]])) == "boxes differ by 1.0e+00 pixels"
    assert differing(boxes=BOXES * np.array([[np.nan], [1], [1], [1]])) == "boxes differ by nan pixels"


def test_detections_with_nearly_the_same_score_may_change_places_and_the_last_may_be_another():
    assert differing(BOXES[[0, 2, 1, 3]], classes=CLASSES[[0, 2, 1, 3]]) == ""
    assert differing(BOXES + np.array([[0], [0], [0], [1]]), classes=np.array([1, 0, 2, 0])) == ""


def write_through(detector: torch.nn.Module, source: Path, path: Path) -> None:
    with verified_file(detector, path, TINY) as partial:
        partial.write_bytes(source.read_bytes())


@pytest.mark.parametrize("fault", ["other boxes", "NaN"])
def test_a_wrong_file_leaves_the_older_good_one_in_its_place(tiny_detector, tiny_onnx, tmp_path, fault):
    path = tmp_path / "tiny.onnx"
    write_through(tiny_detector, tiny_onnx, path)
    assert path.read_bytes() == tiny_onnx.read_bytes()
    path.write_bytes(b"older")
    with torch.no_grad():
        if fault == "NaN":
            tiny_detector.head.head_series[-1].class_logits.bias.fill_(torch.nan)
        else:
            tiny_detector.proposal_generator.init_proposal_boxes.weight.mul_(0.5)
    message = "its training diverge" if fault == "NaN" else r"^tiny\.onnx does not reproduce .* It was not written"
    with pytest.raises(ValueError, match=message):
        write_through(tiny_detector, tiny_onnx, path)
    assert [x.name for x in tmp_path.iterdir()] == ["tiny.onnx"] and path.read_bytes() == b"older"
