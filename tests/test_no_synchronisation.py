"""What must not wait for the device: run on fake CUDA tensors, which have no values that a host could read."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import ImageList
from small_generators import SIZES, make_features, make_generator
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dynamic_sparse_rcnn import (
    BatchedTargets,
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
    node.CRITERION, node.MATCHER, node.DLA.NORMALIZER = "DLACriterion", "OptimalTransportMatcher", normalizer
    assert {loss.device.type for loss in losses_on_a_fake_device(tiny_cfg).values()} == {"cuda"}


def test_a_matcher_that_does_ask_is_found_out(tiny_cfg):
    node = tiny_cfg.MODEL.SparseRCNN
    node.CRITERION, node.MATCHER, node.DLA.SOLVER = "DLACriterion", "OptimalTransportMatcher", "exact"
    with pytest.raises((DataDependentOutputException, RuntimeError)):
        losses_on_a_fake_device(tiny_cfg)


def test_dynamic_proposals_ask_the_device_nothing():
    generator = make_generator(temperature=TemperatureSchedule(30.0, 1.0, 100))
    with FakeTensorMode():
        for module in generator.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device="cuda")))
        features = {name: torch.empty(x.shape, device="cuda") for name, x in make_features().items()}
        proposals, _ = generator(ImageList(torch.empty(2, 3, 64, 128, device="cuda"), SIZES), features)
    assert proposals[0].proposal_boxes.tensor.device.type == "cuda"
