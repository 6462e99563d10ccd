"""Annotation files with anything at all in them: used, or refused with an error that names the file."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin_meta
from detectron2.modeling import build_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_datasets import (
    CONTENT,
    HEIGHT,
    WIDTH,
    Box,
    ap_of_ground_truth,
    coco_content,
    registered,
    write_coco,
    write_images,
    write_voc,
    write_yolo,
)

from dynamic_sparse_rcnn.data.checks import load_checked_dataset, report_dataset
from dynamic_sparse_rcnn.data.datasets import check_same_classes, register_dataset
from dynamic_sparse_rcnn.data.mapper import DetectionMapper

ROOT = Path(__file__).parents[3]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 9), st.floats(), st.sampled_from(["", "1", "120", "a.jpg", "nan"])
)
JSON_VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))
ANY_EXAMPLE = settings(deadline=None, max_examples=75, suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values within a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key in keys for place in places(value[key], (*path, key))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


def refusal(name: str, folder: str) -> str | None:
    """The error that a run with this data set would start with, or None if it can be used; nothing else may happen.

    If it can be used, its own boxes are found to be perfect detections.
    """
    try:
        register_dataset(name)
        num_classes = len(MetadataCatalog.get(name).thing_classes)
        for record in report_dataset(name, num_classes=num_classes, num_proposals=10):
            for annotation in record["annotations"]:
                assert np.isfinite(annotation["bbox"]).all()
                assert annotation["category_id"] in range(num_classes)
        ap = ap_of_ground_truth(name, Path(folder))
        assert math.isnan(ap) or ap == pytest.approx(100)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    finally:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    return None


COCO = coco_content(CONTENT)


@ANY_EXAMPLE
@given(place=st.sampled_from(places(COCO)), new=JSON_VALUES)
def test_a_coco_file_with_anything_anywhere_is_used_or_named(place: tuple[Any, ...], new: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = write_coco(Path(folder), changed(COCO, place, new))
        write_images(Path(folder) / "images", CONTENT)
        error = refusal(name, f"{folder}/output")
        assert error is None or folder in error


@ANY_EXAMPLE
@given(
    tag=st.sampled_from(["width", "height", "name", "difficult", "xmin", "ymin", "xmax", "ymax", "bndbox", "size"]),
    number=st.integers(0, 2),
    text=st.sampled_from([None, "", "x", "nan", "inf", "-1", "0", "0.5", "12.75", "1e9", "1e400", "120", "80", "bee"]),
)
def test_a_voc_file_with_anything_anywhere_is_used_or_named(tag: str, number: int, text: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_voc(Path(folder), CONTENT)
        write_images(Path(folder) / "JPEGImages", CONTENT)
        file = Path(folder) / "Annotations" / "a.xml"
        tree = ElementTree.parse(file)
        elements = list(tree.iter(tag))
        element = elements[number % len(elements)]
        if text is None:
            element.clear()
        else:
            element.text = text
        tree.write(file)
        error = refusal(f"voc:{folder}:train", f"{folder}/output")
        assert error is None or folder in error


BYTES = st.binary(max_size=4) | st.sampled_from([b"\xff\xfe", b"\xef\xbb\xbf", b"&a;", b"<", b'"', b"[", b"9" * 5000])


def mutate(file: Path, changes: list[tuple[float, int, bytes]]) -> None:
    """Replaces, at some shares of the file, some bytes by others."""
    content = file.read_bytes()
    for share, length, new in changes:
        start = int(share * len(content))
        content = content[:start] + new + content[start + length :]
    file.write_bytes(content)


CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), BYTES), min_size=1, max_size=3)


@ANY_EXAMPLE
@given(changes=CHANGES)
def test_a_coco_file_of_any_bytes_is_used_or_named(changes: list[tuple[float, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = write_coco(Path(folder), COCO)
        write_images(Path(folder) / "images", CONTENT)
        mutate(Path(folder) / "boxes.json", changes)
        error = refusal(name, f"{folder}/output")
        assert error is None or folder in error


@ANY_EXAMPLE
@given(file=st.sampled_from(["Annotations/a.xml", "ImageSets/Main/train.txt"]), changes=CHANGES)
def test_voc_files_of_any_bytes_are_used_or_named(file: str, changes: list[tuple[float, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_voc(Path(folder), CONTENT)
        write_images(Path(folder) / "JPEGImages", CONTENT)
        mutate(Path(folder) / file, changes)
        error = refusal(f"voc:{folder}:train", f"{folder}/output")
        assert error is None or folder in error


YOLO_FILES = st.sampled_from(["data.yaml", "train/labels/a.txt"])


@ANY_EXAMPLE
@given(file=YOLO_FILES, changes=CHANGES)
def test_yolo_files_of_any_bytes_are_used_or_named(file: str, changes: list[tuple[float, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = write_yolo(Path(folder), CONTENT)
        mutate(Path(folder) / file, changes)
        error = refusal(name, f"{folder}/output")
        assert error is None or folder in error


TOKENS = st.sampled_from(["0", "1", "2", "0.5", "-1", "1e400", "nan", "x", "0.25", "1.0", "3", "1_0", "\n", "", "²"])


@ANY_EXAMPLE
@given(tokens=st.lists(TOKENS, max_size=12))
def test_yolo_labels_of_any_values_are_used_or_named(tokens: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = write_yolo(Path(folder), CONTENT)
        (Path(folder) / "train/labels/a.txt").write_text(" ".join(tokens))
        error = refusal(name, f"{folder}/output")
        assert error is None or f"{folder}/train/labels/a.txt, line " in error


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 99), st.floats(), st.text(max_size=3))
YAML_VALUES = VALUES | st.lists(VALUES, max_size=4) | st.dictionaries(VALUES, VALUES, max_size=4)


@ANY_EXAMPLE
@given(key=st.sampled_from(["path", "train", "names", "nc", "kpt_shape"]), value=YAML_VALUES)
def test_a_data_yaml_with_anything_anywhere_is_used_or_named(key: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = write_yolo(Path(folder), CONTENT)
        content = {"train": "train/images", "names": ["ant", "bee", "cell"], key: value}
        (Path(folder) / "data.yaml").write_text(yaml.safe_dump(content))
        error = refusal(name, f"{folder}/output")
        assert error is None or folder in error


def test_float_coordinates_and_difficult_objects_of_voc_are_read(tmp_path: Path) -> None:
    write_voc(tmp_path, CONTENT)
    file = tmp_path / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace("<xmin>31<", "<xmin>31.25<"))
    objects = DatasetCatalog.get(registered(f"voc:{tmp_path}:train"))[1]["annotations"]
    assert objects[1]["bbox"] == [30.25, 30, 90, 75]
    assert [o["difficult"] for o in objects] == [0, 1]


def test_voc_folders_with_other_classes_do_not_go_together(tmp_path: Path) -> None:
    for folder, name in (("train", "bee"), ("val", "wasp")):
        write_voc(tmp_path / folder, {"a": [Box("ant", (0, 0, 9, 9)), Box(name, (10, 10, 50, 50))]})
    names = [f"voc:{tmp_path}/{folder}:train" for folder in ("train", "val")]
    with pytest.raises(ValueError, match=r"different classes: .*train:train: \['ant', 'bee'\].*wasp.*same names"):
        check_same_classes(names)


def one_image(folder: Path, boxes: list[list[float]]) -> str:
    coco = coco_content({"a": []})
    coco["categories"] = [{"id": 1, "name": "cell"}]
    coco["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes, start=1)
    ]
    name = write_coco(folder, coco)
    write_images(folder / "images", CONTENT)
    return name


@pytest.mark.parametrize("matcher", ["HungarianMatcher", "OptimalTransportMatcher"])
def test_a_thousand_boxes_of_a_single_class_on_one_image_are_learned_from(
    tiny_cfg: Any, tmp_path: Path, matcher: str
) -> None:
    random = np.random.default_rng(0)
    corners = random.integers(0, [WIDTH - 20, HEIGHT - 20], (1000, 2))
    boxes = np.concatenate([corners, random.integers(2, 20, (1000, 2))], axis=1).tolist()
    name = one_image(tmp_path, boxes)
    node = tiny_cfg.MODEL.SparseRCNN
    node.NUM_CLASSES, node.MATCHER = 1, matcher
    tiny_cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    (record,) = load_checked_dataset(name, num_classes=1)
    assert len(record["annotations"]) == 1000
    model = build_model(tiny_cfg)
    losses = model([DetectionMapper(tiny_cfg, is_train=True)(record)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    (output,) = model.eval()([DetectionMapper(tiny_cfg, is_train=False)(record)])
    assert set(output["instances"].pred_classes.tolist()) == {0}


def test_bad_boxes_of_a_coco_file_are_dropped_and_good_ones_kept(tmp_path: Path) -> None:
    nan = float("nan")
    bad: list[list[float]] = [[5, 5, 0, 9], [5, 5, -3, 9], [nan, 5, 9, 9], [500, 500, 9, 9], [5, 5, 1e308, 1e309]]
    good: list[list[float]] = [[5, 5, 9, 9], [-1e9, -1e9, 2e9, 2e9]]
    (record,) = load_checked_dataset(one_image(tmp_path, bad + good), num_classes=1)
    assert [annotation["bbox"] for annotation in record["annotations"]] == good


LOOK = """
import sys
import dynamic_sparse_rcnn
from dynamic_sparse_rcnn.data.checks import load_checked_dataset
for name, classes in (("voc_2007_test", 20), ("coco_2017_val", 80)):
    print(len(load_checked_dataset(name, num_classes=classes)))
"""


def look_below(root: Path) -> subprocess.CompletedProcess[str]:
    # In a process of its own: detectron2 looks at the variable when it is imported.
    path = os.pathsep.join([str(ROOT / "projects/DynamicSparseRCNN"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"DETECTRON2_DATASETS": str(root), "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True)


def test_detectron2s_layout_is_used_and_what_is_missing_there_is_named(tmp_path: Path) -> None:
    failed = look_below(tmp_path)
    assert failed.returncode
    last = failed.stderr.strip().splitlines()[-1]
    assert f"{tmp_path}/VOC2007/ImageSets/Main/test.txt" in last
    assert f"DETECTRON2_DATASETS, now '{tmp_path}': set it" in last
    write_voc(tmp_path / "VOC2007", {"a": [Box("cat", (0, 0, 40, 40))], "b": []})
    os.rename(tmp_path / "VOC2007/ImageSets/Main/train.txt", tmp_path / "VOC2007/ImageSets/Main/test.txt")
    coco = coco_content({"a": [Box("cell", (0, 0, 40, 40))]})
    coco["categories"] = [c for c in builtin_meta.COCO_CATEGORIES if c["isthing"]]
    coco["annotations"][0] |= {"category_id": 90, "area": 1600, "iscrowd": 0, "id": 1}
    for folder in ("annotations", "val2017"):
        (tmp_path / "coco" / folder).mkdir(parents=True)
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(json.dumps(coco))
    (tmp_path / "coco/val2017/a.jpg").touch()
    found = look_below(tmp_path)
    assert found.stdout.split() == ["2", "1"], found.stderr
