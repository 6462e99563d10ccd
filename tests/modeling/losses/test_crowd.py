"""Crowd regions spare background proposals, and change nothing else."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from dynamic_sparse_rcnn import BatchedTargets, SetCriterion, StagePredictions
from dynamic_sparse_rcnn.modeling.losses.terms import inside_crowd

CPU = torch.device("cpu")


def with_crowd(instances: Instances, regions: list[list[float]]) -> Instances:
    boxes = torch.cat([instances.gt_boxes.tensor, torch.tensor(regions).reshape(-1, 4)])
    return Instances(
        instances.image_size,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.cat([instances.gt_classes, torch.zeros(len(regions), dtype=torch.int64)]),
        gt_is_crowd=torch.tensor([False] * len(instances) + [True] * len(regions)),
    )


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([10.0, 10, 20, 20], True),  # within
        ([0.0, 0, 20, 10], True),  # exactly half
        ([0.0, 0, 19, 10], False),
        ([40.0, 40, 50, 50], False),
        ([15.0, 15, 15, 15], False),  # without area
        ([0.0, 0, 60, 60], False),  # the region is within the box, not the box in it
    ],
)
def test_a_box_is_in_a_crowd_with_half_of_its_area(make_instances, box: list[float], expected: bool) -> None:
    region = [10.0, 0, 30, 30]
    targets = BatchedTargets.from_instances([with_crowd(make_instances(0), [region])], CPU)
    assert inside_crowd(torch.tensor(box).reshape(1, 1, 1, 4), targets).item() is expected


def test_crowds_of_another_image_and_objects_spare_nobody(make_instances) -> None:
    everywhere = [0.0, 0, 96, 64]
    plain = make_instances(1)
    plain.gt_boxes = Boxes(torch.tensor([everywhere]))
    targets = BatchedTargets.from_instances([with_crowd(make_instances(0), [everywhere]), plain], CPU)
    boxes = torch.tensor([10.0, 10, 20, 20]).expand(3, 2, 5, 4)
    assert inside_crowd(boxes, targets)[:, 0].all()
    assert not inside_crowd(boxes, targets)[:, 1].any()


def test_crowd_regions_are_no_targets(tiny_cfg, make_instances, make_predictions) -> None:
    instances = [make_instances(3), make_instances(0)]
    predictions = make_predictions(2, [(64, 96)] * 2, 8)
    criterion = SetCriterion(tiny_cfg)
    plain = criterion(predictions, BatchedTargets.from_instances(instances, CPU))
    # The regions lie where no box is.
    beside = [with_crowd(x, [[1000.0, 1000, 1010, 1010]] * 2) for x in instances]
    marked = criterion(predictions, BatchedTargets.from_instances(beside, CPU))
    for name, loss in plain.items():
        torch.testing.assert_close(marked[name], loss)


def test_the_class_loss_leaves_out_background_in_crowds_alone(tiny_cfg, make_instances, make_predictions) -> None:
    instances = [make_instances(2), make_instances(1)]
    predictions = make_predictions(2, [(64, 96)] * 2, 8, requires_grad=True)
    targets = BatchedTargets.from_instances([with_crowd(x, [[0.0, 0, 96, 32]]) for x in instances], CPU)
    criterion = SetCriterion(tiny_cfg)
    criterion(predictions, targets)["loss_ce"].backward()
    learned = (predictions.logits.grad[-1] != 0).all(-1)
    positive = criterion.matcher(criterion.cost_model(predictions, targets)).positive[-1]
    spared = inside_crowd(predictions.boxes, targets)[-1] & ~positive
    assert spared.any() and not spared.all()
    assert torch.equal(learned, ~spared)


@pytest.mark.parametrize("matcher", ["HungarianMatcher", "OptimalTransportMatcher"])
def test_batches_of_crowds_and_empty_images_train_with_the_same_loss_keys(tiny_cfg, make_inputs, matcher):
    tiny_cfg.MODEL.SparseRCNN.MATCHER = matcher
    model = build_model(tiny_cfg)
    expected = model(make_inputs([2, 1])).keys()
    for counts, regions in (([0, 0], [[], []]), ([0, 0], [[[0.0, 0, 60, 60]], []]), ([2, 0], [[], [[0.0, 0, 9, 9]]])):
        inputs = make_inputs(counts)
        for one, own in zip(inputs, regions, strict=True):
            one["instances"] = with_crowd(one["instances"], own)
        losses = model(inputs)
        assert losses.keys() == expected
        model.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_crowd_regions_need_no_proposals(tiny_cfg, make_inputs) -> None:
    inputs = make_inputs([10])
    inputs[0]["instances"] = with_crowd(inputs[0]["instances"], [[0.0, 0, 9, 9]] * 3)
    with EventStorage() as storage:
        build_model(tiny_cfg)(inputs)
    assert storage.latest()["ground_truths_without_proposal"][0] == 10 - tiny_cfg.MODEL.SparseRCNN.NUM_PROPOSALS


def test_predictions_know_nothing_of_the_option(tiny_cfg, make_predictions, make_instances) -> None:
    predictions: StagePredictions = make_predictions(1, [(64, 96)], 8)
    targets = BatchedTargets.from_instances([make_instances(2)], CPU)
    assert targets.crowd is None
    assert not inside_crowd(predictions.boxes, targets).any()
