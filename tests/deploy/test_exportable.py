"""The detector as a function of tensors, against the detector itself and detectron2's pooler."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn

from dynamic_sparse_rcnn.deploy.exportable import NO_CLASS, ExportableDetector, PyramidPooling
from dynamic_sparse_rcnn.deploy.operators import suppress

SIZES = [(64, 96), (40, 50), (33, 96)]
ORIGINAL_SIZES = [(128, 192), (400, 500), (33, 96)]


def pad(images: list[torch.Tensor]) -> torch.Tensor:
    batch = torch.randint(0, 256, (len(images), 3, 64, 96), dtype=torch.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


@pytest.mark.parametrize("nms_threshold", [1.0, 0.5])
@pytest.mark.parametrize("fixture", ["tiny_cfg", "tiny_dynamic_cfg"])
@torch.no_grad()
def test_finds_what_the_detector_finds(fixture, nms_threshold, request):
    cfg = request.getfixturevalue(fixture)
    cfg.MODEL.SparseRCNN.MATCHER, cfg.MODEL.SparseRCNN.NMS_THRESHOLD = "HungarianMatcher", nms_threshold
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    detector = build_model(cfg).eval()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES]
    inputs = [
        {"image": image, "height": height, "width": width}
        for image, (height, width) in zip(images, ORIGINAL_SIZES, strict=True)
    ]
    exportable = ExportableDetector(detector, suppress)
    boxes, scores, classes = exportable(pad(images), torch.tensor(SIZES), torch.tensor(ORIGINAL_SIZES))
    for number, output in enumerate(detector(inputs)):
        expected, found = output["instances"], classes[number] != NO_CLASS
        assert 0 < len(expected) <= 10
        torch.testing.assert_close(classes[number][found], expected.pred_classes)
        torch.testing.assert_close(scores[number][found], expected.scores)
        torch.testing.assert_close(boxes[number][found], expected.pred_boxes.tensor, rtol=1e-5, atol=1e-3)
        assert not scores[number][~found].any() and not boxes[number][~found].any()


@pytest.mark.parametrize("levels", [1, 4])
def test_pools_as_detectron2_does(levels):
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32][:levels]
    maps = [torch.randn(2, 3, int(512 * scale), int(640 * scale)) for scale in scales]
    # Of all levels, some beyond the image, one without extent.
    sides = 16 * 2 ** (5 * torch.rand(2, 50, 2))
    centers = torch.rand(2, 50, 2) * torch.tensor([640, 512])
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=-1)
    boxes[0, 0, 2:] = boxes[0, 0, :2]
    pooler = ROIPooler(7, scales, 2, "ROIAlignV2")
    assert torch.equal(PyramidPooling(pooler)(maps, boxes), pooler(maps, [Boxes(x) for x in boxes]))


class Foreign(nn.Module):
    """Something that nobody knows how to export."""


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("proposal_generator", "the proposal generator Foreign cannot be exported"),
        ("head", "the head Foreign cannot be exported"),
    ],
)
def test_parts_that_cannot_be_exported_are_named(tiny_cfg, part, message):
    detector = build_model(tiny_cfg).eval()
    setattr(detector, part, Foreign())
    with pytest.raises(ValueError, match=message):
        ExportableDetector(detector, None)


def test_other_detectors_modes_and_poolers_are_refused(tiny_cfg):
    with pytest.raises(ValueError, match="the detector Foreign cannot be exported: SparseRCNN can"):
        ExportableDetector(Foreign(), None)
    with pytest.raises(ValueError, match="training mode"):
        ExportableDetector(build_model(tiny_cfg), None)
    tiny_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool"
    with pytest.raises(ValueError, match="POOLER_TYPE of RoIPool cannot be exported"):
        ExportableDetector(build_model(tiny_cfg).eval(), None)


@pytest.mark.parametrize("part", ["logits", "backbone"])
@torch.no_grad()
def test_an_image_with_nan_predictions_has_nan_scores(tiny_cfg, part):
    detector = build_model(tiny_cfg).eval()
    broken = detector.head.head_series[-1].class_logits if part == "logits" else detector.backbone
    next(broken.parameters())[0] = torch.nan
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96]] * 2)
    assert ExportableDetector(detector, suppress)(images, sizes, sizes)[1].isnan().all()


@torch.no_grad()
def test_the_batch_of_a_detector_with_one_expert_is_not_frozen_by_tracing(tiny_dynamic_cfg):
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.NUM_EXPERTS = 1
    generator = build_model(tiny_dynamic_cfg).eval().proposal_generator

    class Weights(nn.Module):
        def forward(self, maps, sizes):
            return generator.expert_weights(dict.fromkeys(generator.in_features, maps), sizes)

    batch = torch.export.Dim("batch", min=1)
    inputs = torch.zeros(2, 8, 4, 4), torch.ones(2, 2, dtype=torch.int64)
    program = torch.export.export(Weights(), inputs, dynamic_shapes=({0: batch}, {0: batch})).module()
    assert program(torch.zeros(3, 8, 4, 4), torch.ones(3, 2, dtype=torch.int64)).shape[0] == 3
