"""Each family of backbones and proposals finds the same, exported and not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from exported_detections import TINY, assert_same_detections, make_feed, run_detector, run_onnx, run_openvino
from timm_configs import use_timm, use_vit
from torch import nn

from dynamic_sparse_rcnn.deploy.export import export_onnx

Runner = Callable[[Path, dict[str, np.ndarray]], list[np.ndarray]]


def use_swin(cfg: CfgNode) -> CfgNode:
    """The first two levels of the smallest."""
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res2", "res3"], ["p2", "p3"]
    return use_timm(cfg, "swin_tiny_patch4_window7_224", PRETRAINED=False, OUT_INDICES=(0, 1))


#: Of each the change of the config, and what runs files of it for images of any size.
FAMILIES: dict[str, tuple[Callable[[CfgNode], CfgNode], tuple[Runner, ...]]] = {
    "timm CNN": (lambda cfg: use_timm(cfg, "test_efficientnet", PRETRAINED=False), (run_onnx, run_openvino)),
    "timm windows, channels last": (use_swin, ()),
    "ViT, some windows": (
        lambda cfg: use_vit(cfg, PRETRAINED=False, OUT_INDICES=(1,), WINDOW_SIZE=3, GLOBAL_BLOCKS=[1]),
        (run_onnx,),
    ),
}


def build(cfg: CfgNode) -> nn.Module:
    """Of one stage, without NMS: it is the backbone that matters. Boxes stay near a grid's, so that none is empty."""
    node = cfg.MODEL.SparseRCNN
    node.NUM_HEADS, node.INIT_BOXES, node.NMS_THRESHOLD = 1, "grid", 1.0
    torch.manual_seed(0)
    detector = build_model(cfg).eval()
    with torch.no_grad():
        detector.head.head_series[0].bboxes_delta.weight.mul_(0.1)
    return detector


def assert_exported(
    detector: nn.Module, path: Path, runners: Sequence[Runner], sizes: Sequence[tuple[int, int]]
) -> None:
    for size in sizes:
        images = [torch.randint(0, 256, (3, *x), dtype=torch.uint8) for x in (size, (size[0] - 9, size[1] - 3))]
        expected = run_detector(detector, images, [size, size])
        feed = make_feed(images, [size, size], 32)
        for run in runners:
            assert_same_detections(expected, run(path, feed), lowest_score=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_backbones_of_each_family_are_exported(family: str, tiny_cfg: CfgNode, tmp_path: Path) -> None:
    change, of_any_size = FAMILIES[family]
    detector = build(change(tiny_cfg))
    if of_any_size:
        export_onnx(detector, tmp_path / "any.onnx", replace(TINY, size=None, nms_threshold=1.0))
        assert_exported(detector, tmp_path / "any.onnx", of_any_size, [(64, 96), (96, 64)])
    if len(of_any_size) < 2:
        export_onnx(detector, tmp_path / "fixed.onnx", replace(TINY, nms_threshold=1.0))
        assert_exported(detector, tmp_path / "fixed.onnx", (run_onnx, run_openvino), [(64, 96)])


@pytest.mark.slow
def test_what_needs_a_fixed_size_is_refused_with_the_remedy(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    detector = build(use_swin(tiny_cfg))
    with pytest.raises(ValueError, match=r"backbone TimmBackbone: give a fixed size \(--size HxW\)"):
        export_onnx(detector, tmp_path / "detector.onnx", replace(TINY, size=None, nms_threshold=1.0))
    assert not list(tmp_path.iterdir())
