"""Objects followed through the frames of a video."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from dynamic_sparse_rcnn.prediction.results import Prediction
from dynamic_sparse_rcnn.prediction.tracking import Tracker

NAMES = ("ant", "bee")


def frame(number: int, swapped: bool) -> Prediction:
    """Two objects that move towards each other's height, in changing order."""
    boxes = torch.tensor(
        [[10.0 + 4 * number, 10, 50 + 4 * number, 50], [100, 100.0 - 3 * number, 150, 150 - 3 * number]]
    )
    order = [1, 0] if swapped else [0, 1]
    found = Instances(
        (200, 200), pred_boxes=Boxes(boxes[order]), scores=torch.tensor([0.9, 0.6]), pred_classes=torch.tensor(order)
    )
    return Prediction(f"clip:{number}", np.zeros((200, 200, 3), np.uint8), found, NAMES, (7, 9))


def test_an_object_keeps_its_number_whatever_the_order_of_the_detections():
    pytest.importorskip("trackers")
    tracker = Tracker(25.0, 0.5)
    tracked = [tracker.update(frame(number, swapped=number % 2 == 1)) for number in range(8)]
    by_class = [dict(zip(x.labels, x.instances.track_ids.tolist(), strict=True)) for x in tracked]
    assert by_class[0] == {"ant": -1, "bee": -1}  # not certain yet
    assert len({(found["ant"], found["bee"]) for found in by_class[2:]}) == 1
    assert by_class[-1]["ant"] != by_class[-1]["bee"] and min(by_class[-1].values()) >= 0


def test_tracks_are_told_wherever_detections_are():
    pytest.importorskip("trackers")
    tracker = Tracker(None, 0.5)
    last = [tracker.update(frame(number, swapped=False)) for number in range(4)][-1]
    ids = last.instances.track_ids.tolist()
    assert [entry["track_id"] for entry in last.to_coco()] == ids
    assert [entry["track"] for entry in json.loads(json.dumps(last.to_dict()))["detections"]] == ids
    assert last.to_supervision().tracker_id.tolist() == ids
    assert not np.array_equal(last.draw(), frame(3, swapped=False).draw())


def test_a_frame_without_detections_is_no_error():
    pytest.importorskip("trackers")
    empty = frame(0, swapped=False)
    empty = Prediction("clip:0", empty.image, empty.instances[:0], NAMES, (7, 9))
    assert len(Tracker(25.0, 0.5).update(empty).instances) == 0


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(ImportError, match=r"pip install 'dynamic-sparse-rcnn\[supervision\]'"):
        Tracker(25.0, 0.5)


def moving(left: float, score: float) -> Prediction:
    found = Instances(
        (200, 400),
        pred_boxes=Boxes(torch.tensor([[left, 50.0, left + 40, 90]])),
        scores=torch.tensor([score]),
        pred_classes=torch.tensor([0]),
    )
    return Prediction("clip", np.zeros((200, 400, 3), np.uint8), found, NAMES, (7, 9))


def test_an_object_that_turns_while_its_score_is_low_keeps_its_number():
    pytest.importorskip("trackers")
    tracker = Tracker(25.0, 0.5)
    assert tracker.lowest_score == 0.1 and Tracker(25.0, 0.05).lowest_score == 0.05
    there, back = [10.0 * step for step in range(9)], [80.0 - 10 * step for step in range(1, 9)]
    ids = [tracker.update(moving(left, 0.9)).instances.track_ids.tolist() for left in there]
    dip = [tracker.update(moving(left, 0.2)).instances for left in back[:6]]
    again = [tracker.update(moving(left, 0.9)).instances.track_ids.tolist() for left in back[6:]]
    assert [len(found) for found in dip] == [0] * 6
    assert again == [ids[-1]] * 2 and ids[-1][0] >= 0
