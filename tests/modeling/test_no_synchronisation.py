"""What must not wait for the device: run on fake CUDA tensors, which have no values that a host could read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from small_generators import SIZES, make_features, make_generator
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dynamic_sparse_rcnn import (
    BatchedTargets,
    SparseRCNN,
    StagePredictions,
    TemperatureSchedule,
    build_criterion,
)


def losses_on_a_fake_device(cfg) -> dict[str, torch.Tensor]:
    criterion = build_criterion(cfg)
    with FakeTensorMode():
        boxes = torch.rand(3, 2, 20, 2, device="cuda").repeat(1, 1, 1, 2) * 50
        predictions = StagePredictions(torch.randn(3, 2, 20, 5, device="cuda"), boxes + 5)
        targets = BatchedTargets(
            boxes=torch.rand(2, 9, 4, device="cuda"),
            classes=torch.zeros(2, 9, dtype=torch.int64, device="cuda"),
            valid=torch.ones(2, 9, dtype=torch.bool, device="cuda"),
            image_whwh=torch.full((2, 4), 100.0, device="cuda"),
        )
        return criterion(predictions, targets)


@pytest.mark.parametrize("normalizer", ["positives", "num_gt"])
def test_dlas_matching_and_losses_ask_the_device_nothing(tiny_cfg, normalizer):
    node = tiny_cfg.MODEL.SparseRCNN
    node.MATCHER, node.DLA.NORMALIZER = "OptimalTransportMatcher", normalizer
    assert {loss.device.type for loss in losses_on_a_fake_device(tiny_cfg).values()} == {"cuda"}


def test_a_matcher_that_does_ask_is_found_out(tiny_cfg):
    node = tiny_cfg.MODEL.SparseRCNN
    node.MATCHER, node.DLA.SOLVER = "OptimalTransportMatcher", "exact"
    with pytest.raises((DataDependentOutputException, RuntimeError)):
        losses_on_a_fake_device(tiny_cfg)


def move_to_fake_device(model: nn.Module) -> None:
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            new = torch.empty(old.shape, dtype=old.dtype, device="cuda")
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))


def test_dynamic_proposals_ask_the_device_nothing():
    generator = make_generator(temperature=TemperatureSchedule(30.0, 1.0, 100))
    with FakeTensorMode():
        move_to_fake_device(generator)
        features = {name: torch.empty(x.shape, device="cuda") for name, x in make_features().items()}
        proposals, _ = generator(ImageList(torch.empty(2, 3, 64, 128, device="cuda"), SIZES), features)
    assert proposals[0].proposal_boxes.tensor.device.type == "cuda"


@pytest.fixture
def looks(monkeypatch) -> list[int]:
    """Answers the pooling's one question of a stage, how many RoIs each level has, and counts them."""
    asked: list[int] = []

    def equal_shares(levels: torch.Tensor, bounds: torch.Tensor) -> SimpleNamespace:
        asked.append(len(levels))
        return SimpleNamespace(tolist=lambda: [len(levels) * i // (len(bounds) - 1) for i in range(len(bounds))])

    monkeypatch.setattr(torch, "searchsorted", equal_shares)
    return asked


@pytest.fixture(params=[None, torch.float16, torch.bfloat16], ids=str)
def precision(request, monkeypatch) -> torch.dtype | None:
    """float32, or of autocast, which is on for a CUDA device that is not there."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    return request.param


def predict_on_a_fake_device(model: SparseRCNN) -> StagePredictions:
    """Of two images, one smaller than the batch."""
    move_to_fake_device(model)
    return model.predict(ImageList(torch.empty(2, 3, 64, 96, device="cuda"), [(64, 96), (50, 80)]))


def test_a_training_step_asks_once_a_stage(tiny_dynamic_cfg, looks, precision):
    model = build_model(tiny_dynamic_cfg).train()
    stages = tiny_dynamic_cfg.MODEL.SparseRCNN.NUM_HEADS
    with FakeTensorMode(), torch.autocast("cuda", dtype=precision, enabled=precision is not None):
        predictions = predict_on_a_fake_device(model)
        instances = [Instances((64, 96)), Instances((50, 80))]
        for number, x in zip((3, 0), instances, strict=True):
            x.gt_boxes, x.gt_classes = Boxes(torch.empty(number, 4)), torch.empty(number, dtype=torch.int64)
        losses = model.criterion(predictions, BatchedTargets.from_instances(instances, torch.device("cuda:0")))
    assert looks == [2 * tiny_dynamic_cfg.MODEL.SparseRCNN.NUM_PROPOSALS] * stages
    assert (predictions.logits.dtype, predictions.boxes.dtype) == (precision or torch.float32, torch.float32)
    assert {(loss.device.type, loss.dtype) for loss in losses.values()} == {("cuda", torch.float32)}


def test_inference_without_nms_asks_once_a_stage(tiny_cfg, looks, precision):
    model = build_model(tiny_cfg).eval()
    with FakeTensorMode(), torch.no_grad(), torch.autocast("cuda", dtype=precision, enabled=precision is not None):
        detections = model._detect(predict_on_a_fake_device(model).last, [(64, 96), (50, 80)])
    assert len(looks) == tiny_cfg.MODEL.SparseRCNN.NUM_HEADS
    assert {x.scores.device.type for x in detections} == {"cuda"}
