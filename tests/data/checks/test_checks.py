import copy
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_sparse_rcnn.data.checks import load_checked_dataset, report_dataset, require_boxes
from dynamic_sparse_rcnn.data.checks.inspection import check_records
from dynamic_sparse_rcnn.data.records import BoxProblem, BoxTable

BCCD = Path(os.environ.get("BCCD_FOLDER", "-"))
CLASSES = ("ant", "bee", "cell")


def annotation(box: Any, category: Any = 0, mode: Any = BoxMode.XYXY_ABS, **others: Any) -> dict[str, Any]:
    return {"bbox": box, "bbox_mode": mode, "category_id": category, **others}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), np.zeros((50, 100, 3), np.uint8))
    return tmp_path


def records(folder: Path, *images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One image of 100 x 50 pixels for each list of annotations."""
    return [
        {"file_name": str(folder / f"{i}.jpg"), "image_id": i, "width": 100, "height": 50, "annotations": a}
        for i, a in enumerate(images)
    ]


def check(dicts: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    return check_records(dicts, name="cells", class_names=CLASSES, num_classes=3)


def test_usable_data_passes_unchanged_and_is_counted(folder: Path) -> None:
    dicts = records(
        folder,
        [annotation([0, 0, 100, 50], 2), annotation([10, 5, 20, 30], 0, BoxMode.XYWH_ABS)],
        [],
        [annotation([10.5, 5, 20, 30], 2)],
    )
    cleaned, report = check(dicts)
    assert all(after is before for after, before in zip(cleaned, dicts, strict=True))
    assert (report.images, report.boxes, report.images_without_boxes) == (3, 3, 1)
    assert (report.most_boxes_in_an_image, report.fullest_image) == (2, str(folder / "0.jpg"))
    assert report.class_counts == {"ant": 1, "bee": 0, "cell": 2}
    assert [found.count for found in report.dropped.values()] == [0, 0, 0] and report.beyond.count == 0


def test_unusable_boxes_are_dropped_counted_and_named_without_changing_the_input(folder: Path) -> None:
    good = annotation([10, 10, 30, 30])
    dicts = records(
        folder,
        [good],
        [annotation([10, 10, 10, 30]), good, annotation([10, 10, -5, 30], mode=BoxMode.XYWH_ABS)],
        [annotation([100, 0, 20, 20], mode=BoxMode.XYWH_ABS), annotation([0, -9, 50, 0])],
        [good, annotation([math.nan, 0, 5, 5]), annotation([0, 0, math.inf, 5], mode=BoxMode.XYWH_ABS)],
        [annotation([30, 30, 31, 31])],
    )
    before = copy.deepcopy(dicts)
    cleaned, report = check(dicts)
    np.testing.assert_equal(dicts, before)
    assert [len(record["annotations"]) for record in cleaned] == [1, 1, 0, 1, 0]
    assert cleaned[1]["annotations"] == [good]
    named = [str(folder / f"{i}.jpg") for i in range(5)]
    dropped = {problem: (found.count, found.first_files) for problem, found in report.dropped.items()}
    assert dropped == {
        BoxProblem.DEGENERATE: (3, (named[1], named[4])),
        BoxProblem.OUTSIDE: (2, (named[2],)),
        BoxProblem.NON_FINITE: (2, (named[3],)),
    }
    assert (report.boxes, report.images_without_boxes) == (3, 2)


def test_thin_and_partly_outside_boxes_are_kept(folder: Path) -> None:
    thin = annotation([10, 10, 11, 30])
    beyond = annotation([-20, -20, 1e9, 20])
    cleaned, report = check(records(folder, [thin, beyond]))
    assert cleaned[0]["annotations"] == [thin, beyond]
    assert report.boxes == 2


def test_crowds_are_kept_but_are_no_objects(folder: Path) -> None:
    crowd = annotation([0, 0, 40, 40], iscrowd=1)
    cleaned, report = check(records(folder, [crowd, annotation([5, 5, 9, 9], iscrowd=0)], [crowd]))
    assert [len(record["annotations"]) for record in cleaned] == [2, 1]
    assert (report.boxes, report.crowd_boxes, report.images_without_boxes) == (1, 2, 1)
    assert (report.most_boxes_in_an_image, report.class_counts) == (1, {"ant": 1, "bee": 0, "cell": 0})


def test_corners_written_as_sizes_are_kept_with_a_warning_that_gives_their_share(folder: Path) -> None:
    corners = [[10, 5, 30, 20], [60, 10, 90, 40], [40, 30, 80, 45], [50, 20, 52, 30]]
    right = records(folder, [annotation(box) for box in corners])
    assert check(right)[1].beyond.count == 0
    _, report = check(records(folder, [annotation(box, mode=BoxMode.XYWH_ABS) for box in corners]))
    assert (report.boxes, report.beyond.count, report.beyond.share) == (4, 3, 0.75)
    warnings = "; ".join(report.warnings(num_proposals=9))
    assert f"3 boxes reach beyond their image and are clipped to it (75.0%), first in {folder}/0.jpg" in warnings
    assert "is a second corner in the place of their size, or their center in that of a corner?" in warnings


def test_boxes_a_pixel_beyond_the_image_are_nothing_to_tell_and_a_few_no_mistake_of_all(folder: Path) -> None:
    good = [annotation([10, 10, 40, 40])] * 8
    _, report = check(records(folder, [annotation([-1, 0, 101, 51]), *good]))
    assert report.beyond.count == 0
    warnings = check(records(folder, [annotation([-2, 0, 9, 9]), *good]))[1].warnings(num_proposals=9)
    assert warnings[0].startswith("1 boxes reach beyond their image")
    assert not any("corner" in warning for warning in warnings)


def test_coordinates_that_are_fractions_of_the_image_are_dropped_with_a_hint(folder: Path) -> None:
    fractions = [[0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.9, 1.0]]
    from_voc = [annotation([x1 - 1, y1 - 1, x2, y2]) for x1, y1, x2, y2 in fractions]
    for boxes in ([annotation(box) for box in fractions], from_voc):
        _, report = check(records(folder, [*boxes, annotation([5, 5, 30, 30])]))
        assert (report.boxes, report.dropped[BoxProblem.DEGENERATE].count) == (1, 2)
        warnings = "; ".join(report.warnings(num_proposals=9))
        assert f"2 degenerate, no area or a single point, (66.7%), first in {folder}/0.jpg" in warnings
        assert "are their coordinates fractions of the image (0 to 1)?" in warnings


def test_a_set_of_crowds_alone_is_told_and_nothing_to_learn_from(folder: Path) -> None:
    cleaned, report = check(records(folder, [annotation([0, 0, 40, 40], iscrowd=1)] * 3))
    assert "all 3 boxes are crowds ('iscrowd' 1), which do not count as objects" in report.warnings(num_proposals=9)
    with pytest.raises(ValueError, match=r"sets a, b have no usable box .*: all 3 are crowds\. Set 'iscrowd' 0"):
        require_boxes(cleaned, ["a", "b"])
    with pytest.raises(ValueError, match=r"no usable box to learn from\. Name sets with annotations"):
        require_boxes(records(folder, []), ["a"])
    require_boxes([*cleaned, *records(folder, [annotation([0, 0, 40, 40])])], ["a"])


def problem_of(box: tuple[float, ...], width: float, height: float) -> BoxProblem:
    """The rule in words, for one box."""
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in (*box, x2 - x1, y2 - y1)):
        return BoxProblem.NON_FINITE
    if x2 <= x1 or y2 <= y1:
        return BoxProblem.DEGENERATE
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return BoxProblem.OUTSIDE
    if max(min(x2, width) - max(x1, 0), min(y2, height) - max(y1, 0)) <= 1 + 1e-6:
        return BoxProblem.DEGENERATE
    return BoxProblem.NONE


COORDINATE = st.one_of(st.integers(-3, 12).map(float), st.floats(width=64))


@settings(deadline=None)
@given(st.lists(st.tuples(*[COORDINATE] * 4, st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_problems_of_any_boxes_are_those_of_the_plain_rule(rows: list[tuple[float, ...]]) -> None:
    numbers, nothing = np.array(rows, dtype=np.float64), np.zeros(len(rows), np.int64)
    table = BoxTable(nothing, numbers[:, :4], nothing, nothing.astype(bool), image_sizes=numbers[:, 4:])
    assert table.find_problems().tolist() == [problem_of(row[:4], row[4], row[5]) for row in rows]


def test_missing_images_are_counted_and_the_first_five_named(folder: Path) -> None:
    dicts = records(folder, *[[annotation([0, 0, 9, 9])] for _ in range(8)])
    for record in dicts[1:]:
        Path(record["file_name"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"7 of 8 images of cells .*/1\.jpg.*/5\.jpg\. Correct") as error:
        check(dicts)
    assert "6.jpg" not in str(error.value)


def test_class_ids_out_of_range_are_named_with_their_images(folder: Path) -> None:
    box = [0, 0, 9, 9]
    dicts = records(folder, [annotation(box, 2)], [annotation(box, 3), annotation(box, 9)], [annotation(box, -1)])
    with pytest.raises(
        ValueError,
        match=r"3 boxes .*\[0, 3\): \[-1, 3, 9\].*1\.jpg.*2\.jpg.*NUM_CLASSES.*model\.head\.stages\.num_classes",
    ):
        check(dicts)


def test_model_with_more_classes_than_names_is_an_error(folder: Path) -> None:
    dicts = records(folder, [annotation([0, 0, 9, 9])])
    with pytest.raises(ValueError, match=r"names 3 classes, the model has 80: set MODEL\.SparseRCNN\.NUM_CLASSES"):
        check_records(dicts, name="cells", class_names=CLASSES, num_classes=80)
    _, report = check_records(dicts, name="cells", class_names=(), num_classes=2)
    assert report.class_counts == {"class 0": 1, "class 1": 0}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (annotation([0, 0, 9]), r"1 annotations have a 'bbox' .* four numbers, first: \[0, 0, 9\]"),
        (annotation([0, 0, 9, "9"]), "'bbox' .* four numbers"),
        (annotation([0, 0, 9, None]), "'bbox' .* four numbers"),
        ({"category_id": 0, "bbox_mode": BoxMode.XYXY_ABS}, "'bbox' .* four numbers, first: None"),
        (annotation([0, 0, 9, 9], 1.5), "'category_id' .* an integer, first: 1.5"),
        (annotation([0, 0, 9, 9], "1"), "'category_id' .* an integer, first: '1'"),
        (annotation([0, 0, 9, 9], mode=None), "'bbox_mode' .* an integer"),
        (annotation([0, 0, 1, 1], mode=BoxMode.XYWH_REL), "bbox_mode"),
    ],
)
def test_annotation_that_cannot_be_read_is_named(folder: Path, bad: dict[str, Any], reason: str) -> None:
    good = annotation([0, 0, 9, 9])
    with pytest.raises(ValueError, match=reason) as error:
        check(records(folder, [good], [good, bad]))
    assert "1.jpg" in str(error.value)


def test_summary_shows_counts_of_all_classes_and_what_was_dropped(folder: Path) -> None:
    box = [5, 5, 25, 25]
    dicts = records(folder, [annotation(box, 0)] * 17, [annotation(box, 2), annotation([5, 5, 5, 9])])
    report = check(dicts)[1]
    summary = report.summary(num_proposals=17)
    assert "2 images, 18 boxes, 3 classes" in summary
    assert "at most 17 boxes in an image (NUM_PROPOSALS 17)" in summary
    assert " ".join(summary.split()).count("ant 17 cell 1 bee 0") == 1
    assert report.warnings(num_proposals=17) == [
        f"boxes dropped: 1 degenerate, no area or a single point, (5.3%), first in {folder}/1.jpg",
        "1 classes have no box: bee",
    ]


def test_summary_warns_when_an_image_has_more_boxes_than_proposals(folder: Path) -> None:
    dicts = records(folder, [], [annotation([5, 5, 25, 25], i % 3) for i in range(9)])
    (warning,) = check(dicts)[1].warnings(num_proposals=8)
    assert f"{folder}/1.jpg has 9 boxes, more than the 8 proposals" in warning
    assert "NUM_PROPOSALS to 9" in warning


def test_summary_of_very_many_classes_stays_short(folder: Path) -> None:
    names = [f"c{i}" for i in range(1000)]
    dicts = records(folder, [annotation([5, 5, 25, 25], i) for i in range(1000)])
    _, report = check_records(dicts, name="many", class_names=names, num_classes=1000)
    summary = report.summary(num_proposals=1000)
    assert len(summary.splitlines()) < 30
    assert "and 920 classes with 1 boxes or fewer" in summary


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the package logs from now on."""
    # detectron2's logger of the package may not propagate.
    monkeypatch.setattr(logging.getLogger("dynamic_sparse_rcnn"), "propagate", True)
    caplog.set_level(logging.INFO, logger="dynamic_sparse_rcnn")
    return caplog


def test_loading_logs_the_summary_and_returns_the_usable_boxes(folder: Path, log: pytest.LogCaptureFixture) -> None:
    name = f"cells in {folder}"
    dicts = records(folder, [annotation([5, 5, 25, 25], i) for i in range(3)], [annotation([5, 5, 5, 5])])
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).thing_classes = list(CLASSES)
    loaded = report_dataset(name, num_classes=3, num_proposals=10)
    assert loaded == load_checked_dataset(name, num_classes=3)
    assert [len(record["annotations"]) for record in loaded] == [3, 0]
    assert log.records[-1].levelname == "WARNING"
    assert f"first in {folder}/1.jpg" in log.records[-1].getMessage()
    del dicts[1]
    report_dataset(name, num_classes=3, num_proposals=10)
    assert log.records[-1].levelname == "INFO"


def test_what_detectron2s_own_loaders_refuse_names_the_set() -> None:
    def refuse() -> list[dict[str, Any]]:
        raise ValueError("'RBC' is not in list")

    DatasetCatalog.register("voc_of_own_data", refuse)
    with pytest.raises(ValueError, match=r"Data set voc_of_own_data cannot be read: 'RBC' is not in list\. .*'coco:<"):
        load_checked_dataset("voc_of_own_data", num_classes=3)


def test_empty_and_unknown_data_sets_are_errors(folder: Path) -> None:
    name = f"nothing in {folder}"
    DatasetCatalog.register(name, list)
    with pytest.raises(ValueError, match="has no images"):
        load_checked_dataset(name, num_classes=3)
    with pytest.raises(KeyError, match="not registered"):
        load_checked_dataset("never_registered", num_classes=3)


@pytest.mark.skipif(not BCCD.is_dir(), reason="BCCD_FOLDER does not name the folder of the BCCD data set")
@pytest.mark.parametrize(("split", "culprit"), [("train", "BloodImage_00343"), ("val", "BloodImage_00338")])
@pytest.mark.parametrize("form", ["voc:{0}:{1}", "coco:{0}/annotations_coco/{1}.json:{0}/JPEGImages"])
def test_degenerate_boxes_of_real_annotations_are_named(
    split: str, culprit: str, form: str, log: pytest.LogCaptureFixture
) -> None:
    report_dataset(form.format(BCCD, split), num_classes=3, num_proposals=30)
    assert re.search(rf"1 degenerate, .* first in .*{culprit}\.jpg", log.records[-1].getMessage())
