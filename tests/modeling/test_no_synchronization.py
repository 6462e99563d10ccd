"""What must not wait for the device: run on fake CUDA tensors, which have no values that a host could read.

Copies between host and device are watched too: those that wait for the device are errors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList, Instances
from small_generators import SIZES, make_features, make_generator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dynamic_sparse_rcnn import (
    BatchedTargets,
    StagePredictions,
    TemperatureSchedule,
    build_criterion,
)
from dynamic_sparse_rcnn.modeling import detector


class CopiesMustNotWait(TorchDispatchMode):
    """Raises where a copy between host and device waits for it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)}
        copying = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if copying and devices == {"cpu", "cuda"} and not (kwargs or {}).get("non_blocking"):
            raise AssertionError(f"{function} waits for the device")
        return result


def losses_on_a_fake_device(cfg) -> dict[str, torch.Tensor]:
    criterion = build_criterion(cfg)
    with FakeTensorMode(), CopiesMustNotWait():
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
    with pytest.raises(AssertionError, match=r"_to_copy.* waits for the device"):
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
    with FakeTensorMode(), CopiesMustNotWait():
        move_to_fake_device(generator)
        features = {name: torch.empty(x.shape, device="cuda") for name, x in make_features().items()}
        proposals, _ = generator(ImageList(torch.empty(2, 3, 64, 128, device="cuda"), SIZES), features)
    assert proposals[0].proposal_boxes.tensor.device.type == "cuda"


@pytest.fixture(params=[None, torch.float16, torch.bfloat16], ids=str)
def precision(request, monkeypatch) -> torch.dtype | None:
    """float32, or of autocast, which is on for a CUDA device that is not there."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    return request.param


@pytest.fixture
def excused(monkeypatch) -> list[str]:
    """Stands in for the places that may look at the device, and counts their uses."""
    looks: list[str] = []

    def pool(self: ROIPooler, maps: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        looks.append("pooling")  # detectron2's, asks how many RoIs each level has
        share = torch.stack([x.mean() for x in maps]).sum()
        return share * maps[0].new_ones(sum(map(len, boxes)), maps[0].shape[1], *self.output_size)

    def batch(images: list[torch.Tensor], divisibility: int) -> ImageList:
        padded = [nn.functional.pad(x, (0, 96 - x.shape[2], 0, 64 - x.shape[1])) for x in images]
        return ImageList(torch.stack(padded), [tuple(x.shape[1:]) for x in images])

    monkeypatch.setattr(ImageList, "from_tensors", batch)  # detectron2's asks tensors of sizes, on the host
    monkeypatch.setattr(ROIPooler, "forward", pool)
    monkeypatch.setattr(detector, "require_finite", lambda *_: looks.append("finite"))
    monkeypatch.setattr(detector, "check_classes", lambda *_: None)  # looks at the host alone
    return looks


def inputs_on_a_host() -> list[dict[str, Any]]:
    """Two images, one smaller than the batch; the second without ground truths."""
    inputs = []
    for number, size in ((3, (64, 96)), (0, (50, 80))):
        classes = torch.empty(number, dtype=torch.int64)
        instances = Instances(size, gt_boxes=Boxes(torch.empty(number, 4)), gt_classes=classes)
        inputs.append({"image": torch.empty(3, *size, dtype=torch.uint8), "instances": instances})
    return inputs


def test_a_training_step_asks_where_it_may_alone(tiny_dynamic_cfg, excused, precision):
    model = build_model(tiny_dynamic_cfg).train()
    with FakeTensorMode(), torch.autocast("cuda", dtype=precision, enabled=precision is not None):
        move_to_fake_device(model)
        predictions = []
        model.head.register_forward_hook(lambda *arguments: predictions.append(arguments[-1]))
        with CopiesMustNotWait():
            losses = model(inputs_on_a_host())
    assert excused == ["pooling"] * tiny_dynamic_cfg.MODEL.SparseRCNN.NUM_HEADS + ["finite"]
    assert predictions[0].logits.dtype == (precision or torch.float32)
    assert predictions[0].boxes.dtype == torch.float32
    assert {(loss.device.type, loss.dtype) for loss in losses.values()} == {("cuda", torch.float32)}


def test_inference_without_nms_asks_where_it_may_alone(tiny_cfg, excused, precision):
    model = build_model(tiny_cfg).eval()
    with FakeTensorMode(), torch.no_grad(), torch.autocast("cuda", dtype=precision, enabled=precision is not None):
        move_to_fake_device(model)
        with CopiesMustNotWait():
            detections = model(inputs_on_a_host(), do_postprocess=False)
    assert excused == ["pooling"] * tiny_cfg.MODEL.SparseRCNN.NUM_HEADS + ["finite"]
    assert {x.scores.device.type for x in detections} == {"cuda"}
