"""The detector in detectron2's contract: training and inference on batches as they really are."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from small_runs import use_resnet_18
from torch import nn
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from dynamic_sparse_rcnn import DetectorWithTTA, LearnedProposalGenerator, SparseRCNN, StagePredictions
from dynamic_sparse_rcnn.engine.solver import build_optimizer

NAMES = {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "loss_bbox_0", "loss_giou_0"}


@pytest.mark.parametrize("counts", [[3, 1, 5], [2, 0], [0, 0], [1], [30, 2]])
def test_training_on_mixed_sizes_and_any_number_of_ground_truths(tiny_cfg, make_inputs, counts):
    model = build_model(tiny_cfg)
    losses = model(make_inputs(counts))
    assert set(losses) == NAMES
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        # All take part, whatever the batch: distributed training waits for every one.
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_degenerate_boxes_are_as_if_they_were_not_there(tiny_cfg, make_inputs):
    model = build_model(tiny_cfg)
    inputs = make_inputs([2, 1])
    clean = model(inputs)
    instances = inputs[0]["instances"]
    boxes = torch.cat([instances.gt_boxes.tensor, torch.tensor([[5.0, 5, 5, 20], [9, 9, 9, 9]])])
    inputs[0]["instances"] = Instances(
        instances.image_size,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.cat([instances.gt_classes, torch.tensor([0, 1])]),
    )
    for name, loss in model(inputs).items():
        torch.testing.assert_close(loss, clean[name])


def test_more_ground_truths_than_proposals_are_counted_in_the_log(tiny_cfg, make_inputs, caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_TIMER", {})  # as if nothing had been logged yet
    model = build_model(tiny_cfg)
    inputs = make_inputs([8, 11, 9])
    boxes = inputs[0]["instances"].gt_boxes.tensor
    empty = Instances((64, 96), gt_boxes=Boxes(boxes[:, [0, 1, 0, 1]]), gt_classes=torch.zeros(8, dtype=torch.int64))
    inputs[0]["instances"] = Instances.cat([inputs[0]["instances"], empty])  # these need no proposal
    with caplog.at_level(logging.WARNING), EventStorage() as storage:
        model(inputs)
    assert storage.latest()["ground_truths_without_proposal"][0] == 4
    assert "4 ground truths of this batch have no proposal" in caplog.text
    assert "MODEL.SparseRCNN.NUM_PROPOSALS 8" in caplog.text


def test_inference_gives_sorted_detections_inside_the_requested_size(tiny_cfg, make_inputs):
    model = build_model(tiny_cfg).eval()
    inputs = make_inputs([0, 0, 0])
    inputs[1] |= {"height": 128, "width": 176}
    with torch.no_grad():
        outputs = model(inputs)
    for given, output in zip(inputs, outputs, strict=True):
        detections = output["instances"]
        assert detections.image_size == (given["height"], given["width"])
        assert len(detections) <= 8 * 3
        assert (detections.scores.diff() <= 0).all()
        assert set(detections.pred_classes.tolist()) <= {0, 1, 2}
        x1, y1, x2, y2 = detections.pred_boxes.tensor.unbind(1)
        assert (x1.min() >= 0) and (y1.min() >= 0)
        assert (x2.max() <= given["width"]) and (y2.max() <= given["height"])


def test_detections_are_the_best_pairs_of_proposal_and_class(tiny_cfg, make_inputs):
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 5
    model = build_model(tiny_cfg).eval()
    inputs = make_inputs([0])
    with torch.no_grad():
        predictions = model.predict(model.preprocess_image(inputs))
        (detections,) = model(inputs, do_postprocess=False)
    scores = predictions.logits[-1, 0].sigmoid()
    pairs = sorted(((scores[p, c].item(), p, c) for p in range(8) for c in range(3)), reverse=True)[:5]
    assert detections.scores.tolist() == pytest.approx([score for score, _, _ in pairs])
    assert detections.pred_classes.tolist() == [c for _, _, c in pairs]
    torch.testing.assert_close(
        detections.pred_boxes.tensor,
        clip_boxes_to_image(
            torch.stack([predictions.boxes[-1, 0, p] for _, p, _ in pairs]), inputs[0]["image"].shape[1:]
        ),
    )


def test_nms_keeps_one_of_equal_boxes_of_a_class(tiny_cfg, make_inputs):
    inputs = make_inputs([0])
    model = build_model(tiny_cfg).eval()
    for stage in model.head.head_series:
        torch.nn.init.zeros_(stage.bboxes_delta.weight)
        torch.nn.init.zeros_(stage.bboxes_delta.bias)
    with torch.no_grad():
        (every,) = model(inputs, do_postprocess=False)
        model.nms_threshold = 0.7
        (kept,) = model(inputs, do_postprocess=False)
    assert len(every) == 24
    best = {label: every.scores[every.pred_classes == label].max().item() for label in range(3)}
    assert dict(zip(kept.pred_classes.tolist(), kept.scores.tolist(), strict=True)) == best


def test_nms_sees_clipped_boxes_and_other_objects_behind_many_duplicates(tiny_cfg):
    tiny_cfg.MODEL.SparseRCNN.NMS_THRESHOLD = 0.7
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 10
    model = build_model(tiny_cfg).eval()
    # 40 boxes that are the whole image once they are clipped, all sure of both classes, then 5 apart.
    reach = 100 + 50 * torch.arange(40.0)[:, None]
    apart = torch.tensor([[12.0 * i, 0, 12 * i + 10, 10] for i in range(5)])
    boxes = torch.cat([torch.cat([-reach, -reach, reach, reach], dim=1), apart])
    logits = torch.cat([torch.full((40, 2), 3.0), torch.tensor([[1.0, -9.0]]).repeat(5, 1)])
    (detections,) = model.detect(StagePredictions(logits[None, None], boxes[None, None]), [(64, 64)])
    assert detections.pred_boxes.tensor[:2].tolist() == [[0, 0, 64, 64]] * 2
    assert sorted(detections.pred_boxes.tensor[2:7].tolist()) == apart.tolist()


def test_nms_replaces_what_it_drops_up_to_the_number_of_detections(tiny_cfg, make_inputs):
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 4
    tiny_cfg.MODEL.SparseRCNN.NMS_THRESHOLD = 0.7
    model = build_model(tiny_cfg).eval()
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [20, 0, 40, 9], [0, 20, 9, 40], [40, 40, 60, 60]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    logits = torch.full((1, 1, 5, 1), -9.0)
    logits[0, 0, :, 0] = scores.logit()
    (detections,) = model.detect(StagePredictions(logits, boxes[None, None]), [(64, 64)])
    assert detections.scores.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.5])


@pytest.mark.parametrize("architecture", ["SparseRCNN", "DynamicSparseRCNN"])
def test_minus_one_detections_an_image_means_all_of_them(tiny_dynamic_cfg, make_inputs, architecture):
    tiny_dynamic_cfg.MODEL.META_ARCHITECTURE = architecture
    model = build_model(tiny_dynamic_cfg).eval()
    model.num_detections = 8 * 3  # of proposals and classes
    inputs = make_inputs([0, 0])
    tiny_dynamic_cfg.TEST.DETECTIONS_PER_IMAGE = -1
    unlimited = build_model(tiny_dynamic_cfg).eval()
    unlimited.load_state_dict(model.state_dict())
    augmented = DetectorWithTTA(tiny_dynamic_cfg, unlimited)
    augmented.tta_mapper = lambda image: [image | {"transforms": T.TransformList([])}] * 2
    with torch.no_grad():
        for found, expected in zip(unlimited(inputs), model(inputs), strict=True):
            assert len(found["instances"]) == len(expected["instances"])
            torch.testing.assert_close(found["instances"].scores, expected["instances"].scores)
        merged = Instances.cat([x["instances"] for x in model(inputs[:1])] * 2)
        (found,) = augmented(inputs[:1])
    assert len(found["instances"]) == len(merged[keep_of(merged)])


def keep_of(detections: Instances) -> torch.Tensor:
    """What TTA's class-wise NMS at 0.5 keeps."""
    return batched_nms(detections.pred_boxes.tensor, detections.scores, detections.pred_classes, 0.5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_name_stage_image_and_iteration(tiny_cfg, make_inputs, value, training):
    model = build_model(tiny_cfg).train(training)
    with torch.no_grad():
        model.head.head_series[1].class_logits.bias[0] = value
    with EventStorage(41), pytest.raises(FloatingPointError) as error:
        model(make_inputs([1, 2]))
    assert "stage 2 of 2" in str(error.value)
    assert "iteration 41" in str(error.value)
    assert "image_0.png, image_1.png" in str(error.value)


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
@pytest.mark.parametrize("layer", ["class_logits", "bboxes_delta"])
def test_so_do_those_that_no_transport_problem_can_be_made_of(tiny_dynamic_cfg, make_inputs, layer, solver):
    tiny_dynamic_cfg.MODEL.SparseRCNN.DLA.SOLVER = solver
    model = build_model(tiny_dynamic_cfg)
    with torch.no_grad():
        model.head.head_series[1].get_submodule(layer).bias[0] = float("nan")
    with EventStorage(41), pytest.raises(FloatingPointError, match=r"stage 2 of 2.*iteration 41.*image_0\.png"):
        model(make_inputs([1, 2]))


class AssertingCriterion(nn.Module):
    """Stops at NaN in its own way, as those of others do."""

    def forward(self, predictions: StagePredictions, targets: Any) -> None:
        assert not predictions.boxes.isnan().any()


def test_so_do_those_that_another_criterion_stops_at(tiny_cfg, make_inputs):
    model = build_model(tiny_cfg)
    model.criterion = AssertingCriterion()
    with torch.no_grad():
        model.head.head_series[1].bboxes_delta.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"stage 2 of 2.*image_0\.png"):
        model(make_inputs([1, 2]))


def test_boxes_that_grow_beyond_all_bounds_name_stage_and_image(tiny_cfg, make_inputs):
    tiny_cfg.MODEL.SparseRCNN.NUM_HEADS = 6
    model = build_model(tiny_cfg)
    with torch.no_grad():
        for stage in model.head.head_series:
            stage.bboxes_delta.bias[2:] = 20.0
    with pytest.raises(FloatingPointError, match=r"stage \d of 6.*image_0\.png"):
        model(make_inputs([2]))


def test_a_class_that_the_model_does_not_have_names_image_and_key(tiny_cfg, make_inputs):
    inputs = make_inputs([1, 2])
    inputs[1]["instances"].gt_classes[:] = 7
    with pytest.raises(ValueError, match=r"image_1\.png.*\[7\].*NUM_CLASSES .* is 3"):
        build_model(tiny_cfg)(inputs)


class GeneratorWithLosses(LearnedProposalGenerator):
    def forward(self, images, features, gt_instances=None):
        proposals, _ = super().forward(images, features, gt_instances)
        return proposals, {"loss_objectness": self.init_proposal_boxes.weight.sum()}


def test_losses_of_a_proposal_generator_are_refused_not_dropped(tiny_cfg, make_inputs):
    model = build_model(tiny_cfg)
    model.proposal_generator.__class__ = GeneratorWithLosses
    with pytest.raises(ValueError, match=r"GeneratorWithLosses returns loss_objectness.*MODEL\.SparseRCNN\.LOSSES"):
        model(make_inputs([1, 2]))


def test_an_unknown_proposal_generator_is_named_with_its_key(tiny_cfg):
    tiny_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LearnedProposals"
    with pytest.raises(ValueError, match=r"MODEL\.PROPOSAL_GENERATOR\.NAME.*LearnedProposals"):
        build_model(tiny_cfg)


def test_inference_needs_no_no_grad(tiny_cfg, make_inputs):
    (output,) = build_model(tiny_cfg).eval()(make_inputs([1]))
    assert not output["instances"].pred_boxes.tensor.requires_grad


def test_the_backbone_sees_normalized_and_zero_padded_images(tiny_cfg, make_inputs):
    tiny_cfg.MODEL.PIXEL_MEAN, tiny_cfg.MODEL.PIXEL_STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    model = build_model(tiny_cfg).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    inputs = make_inputs([0, 0], [(64, 96), (40, 50)])
    model(inputs)
    assert seen[0].shape == (2, 3, 64, 96)
    for image, given, (height, width) in zip(seen[0], inputs, [(64, 96), (40, 50)], strict=True):
        for channel, (mean, std) in enumerate([(100, 50), (110, 60), (120, 70)]):
            expected = (given["image"][channel].float() - mean) / std
            torch.testing.assert_close(image[channel, :height, :width], expected)
            assert not image[channel, height:].any() and not image[channel, :, width:].any()


@pytest.mark.parametrize(("pad_to", "padded"), [((65, 40), (96, 96)), ((10, 10), (64, 96)), ((64, 200), (64, 224))])
def test_batches_are_padded_with_zeros_to_a_least_size_that_the_backbone_can_divide(
    tiny_cfg, make_inputs, pad_to, padded
):
    model = build_model(tiny_cfg).eval()
    inputs = make_inputs([1, 2], [(64, 96), (40, 50)])
    plain, images = model.preprocess_image(inputs), model.preprocess_image(inputs, pad_to)
    assert images.tensor.shape[-2:] == padded
    assert images.image_sizes == plain.image_sizes
    torch.testing.assert_close(images.tensor[..., :64, :96], plain.tensor)
    assert not images.tensor[..., 64:, :].any() and not images.tensor[..., 96:].any()


def test_what_the_targets_decide_is_counted_without_running_the_detector(tiny_cfg, make_inputs):
    model = build_model(tiny_cfg)
    model.backbone = None
    assert model.count(make_inputs([3, 0, 2])).tolist() == [5]


def test_only_the_image_with_bad_predictions_is_named(tiny_cfg, make_inputs):
    model = build_model(tiny_cfg).eval()
    inputs = make_inputs([1, 1])
    inputs[1]["image"] = torch.full((3, 64, 64), float("nan"))
    with pytest.raises(FloatingPointError, match=r"stage 1 of 2.*no training loop.*image_1.png\.") as error:
        model(inputs)
    assert "image_0.png" not in str(error.value)


def test_public_configs_that_name_no_generator_get_the_learned_one(tiny_cfg):
    assert tiny_cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN"
    model = build_model(tiny_cfg)
    assert isinstance(model, SparseRCNN)
    assert type(model.proposal_generator).__name__ == "LearnedProposalGenerator"


def test_bfloat16_autocast_gives_losses_near_float32s(tiny_cfg, make_inputs):
    model = build_model(use_resnet_18(tiny_cfg))
    inputs = make_inputs([3, 2])
    exact = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(inputs)
    for name, loss in rough.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.1), name


@pytest.mark.slow
def test_one_image_is_learned_by_heart(tiny_cfg, make_inputs):
    tiny_cfg.MODEL.SparseRCNN.INIT_BOXES = "grid"
    tiny_cfg.SOLVER.BASE_LR = 1e-3
    model = build_model(tiny_cfg)
    inputs = make_inputs([3])
    optimizer = build_optimizer(tiny_cfg, model)
    # At a constant rate the boxes never rest, and where they end depends on the CPU's rounding.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 200)
    for _ in range(200):
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        (output,) = model.eval()(inputs)
    detections, wanted = output["instances"][:3], inputs[0]["instances"]
    iou, found = box_iou(wanted.gt_boxes.tensor, detections.pred_boxes.tensor).max(1)
    assert sorted(found.tolist()) == [0, 1, 2]
    assert iou.min() > 0.85
    assert detections.pred_classes[found].tolist() == wanted.gt_classes.tolist()
