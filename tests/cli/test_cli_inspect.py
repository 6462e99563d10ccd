"""``dsrcnn inspect``: what is said of data sets, and the picture of samples."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from written_datasets import CONTENT, HEIGHT, WIDTH, coco_content, write_coco

from dynamic_sparse_rcnn.cli import main
from dynamic_sparse_rcnn.visualization import samples

BCCD = Path(os.environ.get("BCCD_FOLDER", "-"))


@pytest.fixture
def coco_name(tmp_path: Path) -> str:
    name = write_coco(tmp_path, coco_content(CONTENT))
    for stem in CONTENT:
        cv2.imwrite(str(tmp_path / f"images/{stem}.jpg"), np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    return name


def run(*names: str, output: Path, options: tuple[str, ...] = ()) -> None:
    main(["inspect", *names, "--images", "2", "--output", str(output), "--opts", *options])


def fail(*names: str, output: Path) -> None:
    with pytest.raises(SystemExit) as error:
        run(*names, output=output)
    assert error.value.code == 1


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_tool_reports_and_draws_samples_as_the_mapper_delivers_them(
    coco_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], image_format: str
) -> None:
    picture = tmp_path / "out" / "samples.png"
    options = ("INPUT.FORMAT", image_format, "INPUT.MIN_SIZE_TRAIN", "(40,)")
    run(coco_name, output=picture, options=options)
    printed = capsys.readouterr().out
    assert "3 images, 4 boxes, 3 classes" in printed
    assert f"1 degenerate, no area or a single point, (20.0%), first in {tmp_path}/images/b.jpg" in printed
    assert "boxes an image" in printed and "pooled from" in printed
    assert f"Wrote {picture}: 2 samples" in printed
    assert cv2.imread(str(picture)) is not None


def test_a_set_that_cannot_be_used_is_named_and_the_others_are_still_shown(
    coco_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail("coco:none.json:images", coco_name, "never_registered", output=tmp_path / "samples.png")
    printed, error = capsys.readouterr()
    assert error.endswith("error: 2 of 3 data sets cannot be used: coco:none.json:images, never_registered\n")
    assert "error: coco:none.json:images cannot be used: Annotation file none.json does not exist" in printed
    assert "error: never_registered cannot be used: " in printed
    assert "3 images, 4 boxes, 3 classes" in printed


def test_sets_with_other_classes_are_an_error(
    coco_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = coco_content(CONTENT)
    other["categories"][0]["name"] = "other"
    other_name = write_coco(tmp_path / "other", other)
    for stem in CONTENT:
        cv2.imwrite(str(tmp_path / f"other/images/{stem}.jpg"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    fail(coco_name, other_name, output=tmp_path / "samples.png")
    assert "error: The data sets have different classes" in capsys.readouterr().err
    assert (tmp_path / "samples.png").is_file()


def test_what_the_system_says_of_a_file_is_told(
    coco_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "boxes.json")

    monkeypatch.setattr(samples, "register_dataset", refuse)
    fail(coco_name, output=tmp_path / "samples.png")
    assert "cannot be used: [Errno 13] Permission denied: 'boxes.json'" in capsys.readouterr().out


@pytest.mark.skipif(not BCCD.is_dir(), reason="BCCD_FOLDER does not name the folder of the BCCD data set")
def test_the_two_points_among_real_annotations_are_found_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"voc:{BCCD}:train", f"voc:{BCCD}:val", output=tmp_path / "samples.png")
    printed = capsys.readouterr().out
    for culprit in ("BloodImage_00343.jpg", "BloodImage_00338.jpg"):
        assert re.search(rf"1 degenerate, .* first in .*{culprit}", printed)
