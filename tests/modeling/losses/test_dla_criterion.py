"""The criterion with a one-to-many matcher: what the losses are divided by, and what is logged."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from dynamic_sparse_rcnn import BatchedTargets, build_criterion

CPU = torch.device("cpu")
MATCHERS = ("HungarianMatcher", "OptimalTransportMatcher")


def choose(cfg, matcher="OptimalTransportMatcher"):
    cfg.MODEL.SparseRCNN.MATCHER = matcher
    return cfg


@pytest.mark.parametrize("matcher", MATCHERS)
def test_any_matcher_trains_all_parameters(tiny_cfg, make_inputs, matcher):
    model = build_model(choose(tiny_cfg, matcher))
    losses = model(make_inputs([3, 0, 20]))
    assert len(losses) == 6
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_losses_are_divided_by_the_positives_of_their_stage_or_by_the_ground_truths(
    tiny_cfg, make_instances, make_predictions
):
    predictions = make_predictions(3, [(64, 96)] * 2, 20)
    targets = BatchedTargets.from_instances([make_instances(2), make_instances(3)], CPU)
    by_positives = build_criterion(choose(tiny_cfg))
    tiny_cfg.MODEL.SparseRCNN.DLA.NORMALIZER = "num_gt"
    by_ground_truths = build_criterion(tiny_cfg)
    positives = by_positives.matcher(by_positives.cost_model(predictions, targets)).positive.sum((1, 2))
    assert len(set(positives.tolist())) > 1
    first, second = by_positives(predictions, targets), by_ground_truths(predictions, targets)
    for stage, end in enumerate(["_0", "_1", ""]):
        for name in ("loss_ce", "loss_bbox", "loss_giou"):
            expected = second[name + end] * 5 / positives[stage]
            torch.testing.assert_close(first[name + end], expected, msg=name + end)


def test_positives_of_the_parts_of_a_batch_add_up_to_those_of_the_batch(tiny_dynamic_cfg, make_inputs):
    model = build_model(tiny_dynamic_cfg).eval()
    batch = make_inputs([2, 0, 20])
    predictions = model.predict(model.preprocess_image(batch))
    targets = BatchedTargets.from_instances([x["instances"] for x in batch], CPU)
    positives = model.criterion.matcher(model.criterion.cost_model(predictions, targets)).positive.sum((1, 2))
    size = tuple(model.preprocess_image(batch).tensor.shape[-2:])
    assert model.count(batch).tolist() == positives.tolist()
    assert sum(model.count([one], pad_to=size) for one in batch).tolist() == positives.tolist()


def test_an_unknown_normalizer_is_refused_by_key(tiny_cfg):
    tiny_cfg.MODEL.SparseRCNN.DLA.NORMALIZER = "batch"
    with pytest.raises(ValueError, match=r"DLA\.NORMALIZER is 'batch'"):
        build_criterion(choose(tiny_cfg))


def test_an_unknown_criterion_is_refused_by_key_and_the_known_ones_are_listed(tiny_cfg):
    tiny_cfg.MODEL.SparseRCNN.CRITERION = "DLA"
    with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.CRITERION is 'DLA': registered are .*SetCriterion"):
        build_criterion(tiny_cfg)


def test_an_unknown_matcher_is_refused_by_key_and_the_known_ones_are_listed(tiny_cfg):
    known = "registered are HungarianMatcher, OptimalTransportMatcher"
    with pytest.raises(ValueError, match=rf"MODEL\.SparseRCNN\.MATCHER is 'Hungarian': {known}"):
        build_criterion(choose(tiny_cfg, "Hungarian"))


def test_what_the_matcher_did_is_logged(tiny_cfg, make_instances, make_predictions):
    predictions = make_predictions(3, [(64, 96)] * 2, 8)
    targets = BatchedTargets.from_instances([make_instances(10), make_instances(1)], CPU)
    criterion = build_criterion(choose(tiny_cfg))
    assignment = criterion.matcher(criterion.cost_model(predictions, targets))
    with EventStorage() as storage:
        criterion(predictions, targets)
    logged = {name: value for name, (value, _) in storage.latest().items()}
    positives = assignment.positive.sum((1, 2)).tolist()
    assert logged["dla/positives_per_gt_first_stage"] == pytest.approx(positives[0] / 11)
    assert logged["dla/positives_per_gt_last_stage"] == pytest.approx(positives[-1] / 11)
    # 8 proposals teach at most 8 of the 10 ground truths of the first image.
    assert logged["dla/gt_without_proposal"] == 2
    assert logged["dla/mean_supply"] == pytest.approx(assignment.supply.sum().item() / 33)
    assert logged["dla/sinkhorn_residual"] == pytest.approx(assignment.residual.max().item())


@pytest.mark.parametrize("matcher", MATCHERS)
def test_one_to_one_matchers_and_counts_log_nothing(tiny_cfg, make_instances, make_predictions, matcher):
    predictions = make_predictions(2, [(64, 96)], 8)
    targets = BatchedTargets.from_instances([make_instances(2)], CPU)
    criterion = build_criterion(choose(tiny_cfg, matcher))
    with EventStorage() as storage:
        criterion.count(predictions, targets)
        assert not storage.latest()
        criterion(predictions, targets)
    assert bool(storage.latest()) == criterion.matcher.one_to_many


def test_without_a_training_loop_losses_are_those_within_one(tiny_cfg, make_instances, make_predictions):
    predictions = make_predictions(2, [(64, 96)], 8)
    targets = BatchedTargets.from_instances([make_instances(2)], CPU)
    criterion = build_criterion(choose(tiny_cfg))
    outside = criterion(predictions, targets)
    with EventStorage() as storage:
        within = criterion(predictions, targets)
    assert storage.latest()
    torch.testing.assert_close(outside, within)
