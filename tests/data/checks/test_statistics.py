"""Sizes and numbers of the boxes of a data set, against the pyramid and the proposals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from dynamic_sparse_rcnn.data.checks.statistics import measure_boxes


def record(boxes: list[list[float]], width: int = 100, height: int = 50, **others: Any) -> dict[str, Any]:
    annotations = [{"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} | others for box in boxes]
    return {"file_name": "a.jpg", "width": width, "height": height, "annotations": annotations}


@pytest.fixture
def cfg(tiny_cfg: CfgNode) -> CfgNode:
    tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.INPUT.MAX_SIZE_TEST = 800, 1333
    return tiny_cfg


def test_boxes_are_measured_at_the_networks_input_and_sent_to_their_level(cfg: CfgNode) -> None:
    # Short side 50 -> 800 would make the long one 1600: the scale is 13.33.
    dicts = [record([[0, 0, 3, 3], [0, 0, 9, 9]]), record([[-10, -10, 200, 200]]), record([])]
    found = measure_boxes(dicts, cfg)
    scale = 1333 / 100
    assert found.sides.tolist() == pytest.approx([3 * scale, 9 * scale, np.sqrt(100 * 50) * scale])
    # 40 pixels: p2 (< 112); 120: p3 (< 224); 943: p5 has all from 448 on.
    assert dict(zip(found.level_names, found.level_counts, strict=True)) == {"p2": 1, "p3": 1, "p4": 0, "p5": 1}
    assert found.per_image.tolist() == [2, 1, 0]


def test_crowds_are_not_measured_and_nothing_at_all_is_no_error(cfg: CfgNode) -> None:
    found = measure_boxes([record([[0, 0, 9, 9]], iscrowd=1)], cfg)
    assert found.level_counts == (0, 0, 0, 0)
    assert "0 of 1 images have more boxes than NUM_PROPOSALS 8" in found.summary()


def test_summary_counts_the_images_with_too_many_boxes(cfg: CfgNode) -> None:
    summary = measure_boxes([record([[0, 0, 9, 9]] * 9), record([[0, 0, 9, 9]] * 8)], cfg).summary()
    assert "1 of 2 images have more boxes than NUM_PROPOSALS 8" in summary
    assert "p5" in summary and "100.0%" in summary
