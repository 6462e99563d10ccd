"""The typed values check their shapes, and batch ground truths without loss."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances

from dynamic_sparse_rcnn import Assignment, BatchedTargets, MatchCosts, StagePredictions

CPU = torch.device("cpu")


def test_batched_targets_keep_every_ground_truth_and_mark_the_padding(make_instances):
    instances = [make_instances(3, (64, 96)), make_instances(0, (32, 48)), make_instances(5, (80, 80))]
    targets = BatchedTargets.from_instances(instances, CPU)
    assert targets.boxes.shape == (3, 5, 4)
    assert targets.valid.sum(1).tolist() == [3, 0, 5]
    for image, expected in enumerate(instances):
        torch.testing.assert_close(targets.boxes[image][targets.valid[image]], expected.gt_boxes.tensor)
        assert torch.equal(targets.classes[image][targets.valid[image]], expected.gt_classes)
    assert targets.image_whwh.tolist() == [[96, 64, 96, 64], [48, 32, 48, 32], [80, 80, 80, 80]]


def test_padding_is_a_unit_box_and_a_batch_without_ground_truths_has_one_column(make_instances):
    targets = BatchedTargets.from_instances([make_instances(0), make_instances(0)], CPU)
    assert targets.boxes.tolist() == [[[0, 0, 1, 1]], [[0, 0, 1, 1]]]
    assert not targets.valid.any()


def test_boxes_without_extent_are_no_targets():
    boxes = torch.tensor([[1.0, 1, 1, 9], [2, 2, 8, 8], [5, 5, 5, 5], [9, 9, 3, 12]])
    instances = Instances((16, 16), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(4, dtype=torch.int64))
    assert BatchedTargets.from_instances([instances], CPU).valid.tolist() == [[False, True, False, False]]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="boxes has the shape"):
        StagePredictions(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="valid has the shape"):
        MatchCosts(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="int64"):
        Assignment(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="G >= 1"):
        BatchedTargets(
            torch.zeros(2, 0, 4),
            torch.zeros(2, 0, dtype=torch.int64),
            torch.zeros(2, 0, dtype=torch.bool),
            torch.ones(2, 4),
        )
