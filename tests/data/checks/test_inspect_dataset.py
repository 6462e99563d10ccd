"""A look at a data set before a training."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

import cv2
import inspect_dataset
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, BoxMode, Instances
from written_datasets import CONTENT, HEIGHT, WIDTH, coco_content, write_coco

from dynamic_sparse_rcnn.data.checks.statistics import measure_boxes
from dynamic_sparse_rcnn.visualization.figures import draw_annotations

BCCD = Path(os.environ.get("BCCD_FOLDER", "-"))


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


@pytest.fixture
def coco_name(tmp_path: Path) -> str:
    name = write_coco(tmp_path, coco_content(CONTENT))
    for stem in CONTENT:
        cv2.imwrite(str(tmp_path / f"images/{stem}.jpg"), np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    return name


def run(*names: str, output: Path, options: tuple[str, ...] = ()) -> int:
    arguments = {"names": list(names), "config_file": inspect_dataset.CONFIG, "images": 2, "output": output}
    return inspect_dataset.main(argparse.Namespace(**arguments, opts=list(options)))


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_tool_reports_and_draws_samples_as_the_mapper_delivers_them(
    coco_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], image_format: str
) -> None:
    picture = tmp_path / "out" / "samples.png"
    options = ("INPUT.FORMAT", image_format, "INPUT.MIN_SIZE_TRAIN", "(40,)")
    assert run(coco_name, output=picture, options=options) == 0
    printed = capsys.readouterr().out
    assert "3 images, 4 boxes, 3 classes" in printed
    assert "1 degenerate, no area or a single point, (20.0%), first in b.jpg" in printed
    assert "boxes an image" in printed and "pooled from" in printed
    assert f"Wrote {picture}: 2 samples" in printed
    assert cv2.imread(str(picture)) is not None


def test_a_set_that_cannot_be_used_is_named_and_the_others_are_still_shown(
    coco_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("coco:none.json:images", coco_name, "never_registered", output=tmp_path / "samples.png") == 2
    printed = capsys.readouterr().out
    assert "error: coco:none.json:images cannot be used: Annotation file none.json does not exist" in printed
    assert "error: never_registered cannot be used: " in printed
    assert "3 images, 4 boxes, 3 classes" in printed


def test_sets_with_other_classes_are_an_error(coco_name: str, tmp_path: Path) -> None:
    other = coco_content(CONTENT)
    other["categories"][0]["name"] = "other"
    other_name = write_coco(tmp_path / "other", other)
    for stem in CONTENT:
        cv2.imwrite(str(tmp_path / f"other/images/{stem}.jpg"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(ValueError, match="different classes"):
        run(coco_name, other_name, output=tmp_path / "samples.png")
    assert (tmp_path / "samples.png").is_file()


def test_what_the_system_says_of_a_file_is_told(
    coco_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "boxes.json")

    monkeypatch.setattr(inspect_dataset, "register_dataset", refuse)
    assert run(coco_name, output=tmp_path / "samples.png") == 1
    assert "cannot be used: [Errno 13] Permission denied: 'boxes.json'" in capsys.readouterr().out


def test_annotations_are_drawn_in_the_colour_of_their_class_and_crowds_in_grey() -> None:
    annotations = Instances(
        (60, 80),
        gt_boxes=Boxes(torch.tensor([[10.0, 10, 30, 30], [40, 10, 70, 50]])),
        gt_classes=torch.tensor([0, 1]),
        gt_is_crowd=torch.tensor([False, True]),
    )
    picture = draw_annotations(np.zeros((60, 80, 3), np.uint8), annotations, ["a", "b"], "image", 320)
    assert picture.shape[1] == 320 and picture.shape[0] > 240
    panel = picture[-240:].astype(int)
    # The lower edges, away from the labels: the first box's colour is red, the second's is grey.
    red, green, blue = panel[115:125, 60:100].reshape(-1, 3).max(0)
    assert red > 150 > green + 50 and red > blue + 50
    edge = panel[195:205, 200:260].reshape(-1, 3)
    brightest = edge[edge.sum(1).argmax()]
    assert brightest.min() > 100 and np.ptp(brightest) < 20
    with pytest.raises(ValueError, match="have no name"):
        draw_annotations(np.zeros((60, 80, 3), np.uint8), annotations, ["a"], "image", 320)


@pytest.mark.skipif(not BCCD.is_dir(), reason="BCCD_FOLDER does not name the folder of the BCCD data set")
def test_the_two_points_among_real_annotations_are_found_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"voc:{BCCD}:train", f"voc:{BCCD}:val", output=tmp_path / "samples.png") == 0
    printed = capsys.readouterr().out
    for culprit in ("BloodImage_00343.jpg", "BloodImage_00338.jpg"):
        assert re.search(rf"1 degenerate, .* first in {culprit}", printed)
