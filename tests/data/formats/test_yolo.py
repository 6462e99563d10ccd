"""Folders in YOLO's layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from written_datasets import (
    CONTENT,
    HEIGHT,
    WIDTH,
    Box,
    coco_content,
    detect,
    evaluate,
    registered,
    table,
    write_coco,
    write_images,
    write_voc,
    write_yolo,
    yolo_line,
)

from dynamic_sparse_rcnn.data.checks import load_checked_dataset, report_dataset
from dynamic_sparse_rcnn.data.datasets import check_same_classes, register_dataset
from dynamic_sparse_rcnn.data.formats import YoloDataset, parse_dataset_name
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.data.splits import SplitPart
from dynamic_sparse_rcnn.engine.evaluation import build_evaluator


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("dynamic_sparse_rcnn"), "propagate", True)
    return caplog


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolo:a/data.yaml:train", YoloDataset("a/data.yaml", "train")),
        (r"yolo:C:\a\data.yml:train", YoloDataset(r"C:\a\data.yml", "train")),
        ("yolo:12:30/data.yaml:train", YoloDataset("12:30/data.yaml", "train")),
        ("yolo:folder:train", YoloDataset("folder", "train")),
        ("yolo:folder", YoloDataset("folder", "")),
        ("yolo:a/data.yaml:train:0-50%", YoloDataset("a/data.yaml", "train", SplitPart.parse("0-50%"))),
        ("yolo:folder:0-50%:0", YoloDataset("folder", "", SplitPart.parse("0-50%"))),
        (r"yolo:C:\folder", YoloDataset(r"C:\folder", "")),
    ],
)
def test_names_are_parsed(name: str, expected: YoloDataset) -> None:
    assert parse_dataset_name(name) == expected


@pytest.mark.parametrize("name", ["yolo:", "yolo:data.yaml", "yolo:data.yaml:", "yolo::train"])
def test_a_malformed_name_shows_the_expected_form(name: str) -> None:
    with pytest.raises(ValueError, match=r"does not have the form 'yolo:<data\.yaml or folder>:<split>'"):
        parse_dataset_name(name)


def by_image(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What a training gets of each image."""
    return {
        Path(record["file_name"]).stem: [
            record["height"],
            record["width"],
            record["instances"].gt_classes.tolist(),
            (record["instances"].gt_boxes.tensor * 100).round().tolist(),
        ]
        for record in records
    }


def test_one_set_in_three_formats_is_one_set_to_training_and_evaluation(tmp_path: Path, tiny_cfg: Any) -> None:
    coco = coco_content(CONTENT)
    for category in coco["categories"]:
        category["id"] = {"ant": 5, "bee": 6, "cell": 90}[category["name"]]
    for annotation in coco["annotations"]:
        annotation["category_id"] = {2: 5, 9: 6, 7: 90}[annotation["category_id"]]
    write_voc(tmp_path / "voc", CONTENT)
    for folder in (tmp_path / "coco/images", tmp_path / "voc/JPEGImages"):
        write_images(folder, CONTENT)
    names = [
        write_coco(tmp_path / "coco", coco),
        f"voc:{tmp_path}/voc:train",
        write_yolo(tmp_path / "yolo", CONTENT),
    ]
    check_same_classes(names)
    mapper = DetectionMapper(tiny_cfg, is_train=False)
    mapper.is_train = True  # with annotations, but without anything random
    inputs, results = [], []
    for name in names:
        records = load_checked_dataset(name, num_classes=3)
        inputs.append(by_image([mapper(record) for record in records]))
        evaluator = build_evaluator(name, str(tmp_path / "output"), voc_metric="none")
        results.append(evaluate(evaluator, detect(name))["bbox"])
    assert inputs[0] == inputs[1] == inputs[2]
    assert sum(len(image[2]) for image in inputs[0].values()) == 4
    for other in results[1:]:
        assert other == pytest.approx(results[0], abs=1e-9, nan_ok=True)
    assert 5 < results[0]["AP"] < 95


def write_labels(folder: Path, text: str) -> str:
    """One image with these labels; returns the data set's name."""
    name = write_yolo(folder, {"a": []})
    (folder / "train/labels/a.txt").write_text(text)
    return name


def test_polygons_become_the_boxes_around_them(tmp_path: Path) -> None:
    name = write_labels(tmp_path, "1 0.5 0.25 0.75 0.5 0.25 1.0\n\n2.0 0.5 0.5 1 1 \n")
    expected = {("bee", (0.25 * WIDTH, 0.25 * HEIGHT, 0.75 * WIDTH, HEIGHT)): 1, ("cell", (0, 0, WIDTH, HEIGHT)): 1}
    assert table(registered(name)) == {"a": expected}


def test_numbers_after_the_box_are_keypoints_where_the_yaml_says_so(tmp_path: Path) -> None:
    name = write_labels(tmp_path, "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 2\n")
    with open(tmp_path / "data.yaml", "a") as file:
        file.write("kpt_shape: [2, 3]\n")
    assert table(registered(name)) == {"a": {("ant", (30, 20, 90, 60)): 1}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.5", "has 3 numbers after the class; a box needs 4, a polygon at least 3 points"),
        ("0 0.5 0.5 0.5 0.5 0.9", "has 5 numbers after the class"),
        ("cat 0.5 0.5 0.5 0.5", "has values that are not numbers"),
        ("0,0.5,0.5,0.5,0.5", "has values that are not numbers"),
        ("0.5 0.5 0.5 0.5 0.5", "has a class that is not an integer"),
        ("3 0.5 0.5 0.5 0.5", r"names class 3, which is not one of \[0, 1, 2\]"),
        ("-1 0.5 0.5 0.5 0.5", "names class -1"),
        ("0 60 40 20 20", "has coordinates outside of 0 to 1; they must be normalized by the image size"),
        ("0 0.5 0.5 nan 0.5", "has coordinates outside"),
        ("9" * 5000 + " 0.5 0.5 0.5 0.5", "has a class that is not an integer"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    name = registered(write_labels(tmp_path, f"0 0.5 0.5 0.5 0.5\n\n{line}\n"))
    with pytest.raises(ValueError, match=rf"train/labels/a\.txt, line 3, {reason}.*: .*Correct it"):
        DatasetCatalog.get(name)


def test_images_without_label_files_have_no_objects_and_are_counted(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    name = registered(write_yolo(tmp_path, CONTENT))
    (tmp_path / "train/labels/c.txt").unlink()
    assert [len(record["annotations"]) for record in DatasetCatalog.get(name)] == [3, 2, 0]
    (warning,) = (record.getMessage() for record in log.records)
    assert warning == f"{name}: 1 of 3 images have no label file; they count as empty."
    for file in (tmp_path / "train/labels").iterdir():
        file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"None of the 3 images .* has a label file such as .*train/labels/a\.txt\."
    ):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    ("text", "classes", "ids"),
    [
        ("names: [b, a]", ["b", "a"], [0, 1]),
        ("names: {0: b, 1: a}\nnc: 2", ["b", "a"], [0, 1]),
        ("names:\n  2: ' c '\n  0: b", ["b", "c"], [0, 2]),
        ("names: [yes, no, 007, 1.0]", ["yes", "no", "007", "1.0"], [0, 1, 2, 3]),
        ("nc: 2", ["class 0", "class 1"], [0, 1]),
    ],
)
def test_class_names_are_a_list_or_a_mapping(tmp_path: Path, text: str, classes: list[str], ids: list[int]) -> None:
    name = write_labels(tmp_path, f"{ids[-1]} 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text(f"train: train/images\n{text}\n")
    metadata = MetadataCatalog.get(registered(name))
    assert metadata.thing_classes == classes
    assert list(metadata.thing_dataset_id_to_contiguous_id) == ids
    assert table(name) == {"a": {(classes[-1], (30, 20, 90, 60)): 1}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("names: [a", "is not a YAML file"),
        ("- a", "is not a mapping of keys to values"),
        ("train: train/images", "'names' is neither a list"),
        ("train: train/images\nnames: []", "'names' is neither a list"),
        ("train: train/images\nnames: [a, [b]]", r"'names' has '1': \['b'\]"),
        ("train: train/images\nnames: {a: b}", "'names' has 'a': 'b'"),
        ("train: train/images\nnames: [a, b]\nnc: 3", "'nc' is 3, but there are 2 'names'"),
        ("train: train/images\nnames: [a, b, a]", "first: 'a' by the categories"),
        ("val: train/images\nnames: [a]", "has no images of the split 'train'; its other keys are val"),
        ("train: nowhere\nnames: [a]", "train is 'nowhere', but .*/nowhere do not exist. Correct"),
        ("train: labels\nnames: [a]", "labels has no images"),
        ("train: none.txt\nnames: [a]", "none.txt lists no images"),
        ("[" * 20_000, "is not a YAML file"),
    ],
)
def test_a_data_yaml_that_cannot_be_used_is_named(tmp_path: Path, text: str, reason: str) -> None:
    name = write_yolo(tmp_path, CONTENT)
    (tmp_path / "labels").mkdir()
    (tmp_path / "none.txt").touch()
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"(?s){tmp_path}.*{reason}"):
        DatasetCatalog.get(registered(name))


@pytest.mark.parametrize(
    ("path", "train"),
    [
        (None, "images/train"),
        (".", "images/train"),
        ("{0}", "images/train"),
        ("data", "../images/train"),
        ("/somewhere/else", "images/train"),
        (None, "{0}/images/train"),
        (None, ["images/train/1", "images/train/2"]),
        (None, "train.txt"),
        (None, ["lists/train.txt", "images/train/2"]),
        (None, "images\\train"),
    ],
)
def test_splits_are_found_whatever_their_path_is_relative_to(tmp_path: Path, path: str | None, train: Any) -> None:
    for stem, part in (("a", 1), ("b", 2)):
        write_images(tmp_path / f"images/train/{part}", [stem])
        (tmp_path / f"labels/train/{part}").mkdir(parents=True)
        (tmp_path / f"labels/train/{part}/{stem}.txt").write_text(f"0 0.5 0.5 0.{part} 0.5\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "train.txt").write_text(f"./images/train/1/a.jpg\n\n{tmp_path}/images/train/2/b.jpg\n")
    (tmp_path / "lists/train.txt").write_bytes("images\\train\\1\\a.jpg\r\n".encode("utf-8-sig"))
    entries = [train] if isinstance(train, str) else train
    lines = [f"path: {path.format(tmp_path)}"] if path else []
    lines += ["train:", *(f"  - {entry.format(tmp_path)}" for entry in entries), "names: [ant]"]
    (tmp_path / "data.yaml").write_text("\n".join(lines))
    found = table(registered(f"yolo:{tmp_path}/data.yaml:train"))
    assert found == {"a": {("ant", (54, 20, 66, 60)): 1}, "b": {("ant", (48, 20, 72, 60)): 1}}


def test_images_listed_twice_are_used_once_and_those_that_are_missing_are_named(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    name = write_yolo(tmp_path, CONTENT)
    (tmp_path / "list.txt").write_text("train/images/a.jpg\ntrain/images/b.jpg\ntrain/images/a.jpg\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [ant, bee, cell]\n")
    assert [record["image_id"] for record in DatasetCatalog.get(registered(name))] == [
        "train/images/a.jpg",
        "train/images/b.jpg",
    ]
    assert "lists 1 images again; each is used once" in log.text
    (tmp_path / "train/images/b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images of yolo:.* do not exist, first: .*train/images/b\.jpg"):
        load_checked_dataset(name, num_classes=3)


def test_a_plain_folder_needs_class_names_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "images", CONTENT)
    (tmp_path / "labels").mkdir()
    for stem, boxes in CONTENT.items():
        (tmp_path / f"labels/{stem}.txt").write_text("".join(yolo_line(len(box.name) - 3, box) for box in boxes))
    with pytest.raises(
        FileNotFoundError, match=r"has no class names: write classes\.txt there, with one name per line"
    ):
        register_dataset(f"yolo:{tmp_path}")
    (tmp_path / "labels/classes.txt").write_text("insect\ncell\n")
    kinds = {"ant": "insect", "bee": "insect", "cell": "cell"}
    renamed = {stem: [Box(kinds[box.name], box.corners) for box in boxes] for stem, boxes in CONTENT.items()}
    write_voc(tmp_path / "voc", renamed)
    found, expected = (table(registered(name)) for name in (f"yolo:{tmp_path}", f"voc:{tmp_path}/voc:train"))
    assert found.keys() == expected.keys()
    for stem in expected:
        assert sorted(found[stem].elements()) == [
            (name, pytest.approx(corners, abs=1e-9)) for name, corners in sorted(expected[stem].elements())
        ]


def test_labels_beside_the_images_are_found(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["a"])
    (tmp_path / "images/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("ant\n")
    assert table(registered(f"yolo:{tmp_path}")) == {"a": {("ant", (30, 20, 90, 60)): 1}}


def test_a_folder_without_the_split_or_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        register_dataset(f"yolo:{tmp_path}/nowhere:train")
    with pytest.raises(FileNotFoundError, match=r"None of .*images/train, .*train/images exists\. Name a data\.yaml"):
        register_dataset(f"yolo:{tmp_path}:train")


@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_are_shares_of_the_image_as_it_is_shown(tmp_path: Path, orientation: int) -> None:
    name = write_labels(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    image = Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "train/images/a.jpg", exif=exif)
    (record,) = report_dataset(name, num_classes=3, num_proposals=9)
    width, height = (WIDTH, HEIGHT) if orientation == 1 else (HEIGHT, WIDTH)
    assert (record["width"], record["height"]) == (width, height)
    assert record["annotations"][0]["bbox"] == [width / 4, height / 4, 3 * width / 4, 3 * height / 4]


def test_an_image_that_cannot_be_read_is_left_out_of_a_training(tmp_path: Path) -> None:
    name = write_yolo(tmp_path, CONTENT)
    (tmp_path / "train/images/b.jpg").write_bytes(b"")
    records = report_dataset(name, num_classes=3, num_proposals=9)
    assert [Path(record["file_name"]).stem for record in records] == ["a", "c"]
    with pytest.raises(ValueError, match=r"1 of 3 images .* cannot be used, first: .*b\.jpg cannot be read"):
        report_dataset(name, num_classes=3, num_proposals=9, is_train=False)
