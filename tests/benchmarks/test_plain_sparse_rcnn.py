"""The plain Sparse R-CNN of the benchmarks is the same detector, told in another way."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from plain_sparse_rcnn import PlainSparseRCNN
from torch import nn

from dynamic_sparse_rcnn import SparseRCNN

SIZES = [(96, 128), (128, 96)]


@pytest.fixture
def detectors(tiny_cfg) -> tuple[SparseRCNN, PlainSparseRCNN]:
    """Of the project, and the plain one; boxes of all stages differ, and scores are spread."""
    tiny_cfg.MODEL.SparseRCNN.NUM_HEADS = 3
    tiny_cfg.MODEL.SparseRCNN.INIT_BOXES = "random"
    detector = build_model(tiny_cfg)
    for stage in detector.head.head_series:
        nn.init.normal_(stage.class_logits.weight, std=0.3)
    return detector, PlainSparseRCNN(detector)


def test_it_shares_all_parameters(detectors):
    detector, plain = detectors
    assert {id(p) for p in plain.parameters()} == {id(p) for p in detector.parameters()}


@pytest.mark.parametrize("counts", [[3, 5], [12, 1], [0, 4], [0, 0]])
def test_losses_and_gradients_are_the_same(detectors, make_inputs, counts):
    inputs = make_inputs(counts, SIZES)
    losses = [detector(inputs) for detector in detectors]
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    parameters = dict(detectors[0].named_parameters())
    ours, plain = (torch.autograd.grad(sum(x.values()), list(parameters.values())) for x in losses)
    for name, gradient, other in zip(parameters, ours, plain, strict=True):
        scale = gradient.abs().max().item()
        torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-3 * scale, msg=lambda m, n=name: f"{n}: {m}")


def test_detections_are_the_same(detectors, make_inputs):
    inputs = make_inputs([3, 5], SIZES)
    inputs[0] |= {"height": 300, "width": 400}
    with torch.no_grad():
        ours, plain = (detector.eval()(inputs) for detector in detectors)
    for found, expected in zip(ours, plain, strict=True):
        found, expected = found["instances"], expected["instances"]
        assert found.image_size == expected.image_size
        assert len(found) == len(expected) > 15
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
        assert found.pred_classes.tolist() == expected.pred_classes.tolist()


def test_what_it_cannot_be_compared_with_is_refused(tiny_dynamic_cfg):
    with pytest.raises(ValueError, match="static"):
        PlainSparseRCNN(build_model(tiny_dynamic_cfg))
