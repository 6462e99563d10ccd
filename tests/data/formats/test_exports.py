"""Data sets as annotation tools export them, each with what is peculiar to it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import MetadataCatalog
from written_datasets import ap_of_ground_truth, registered, table, write_images

from dynamic_sparse_rcnn.data.checks import load_checked_dataset

CAR, BIKE = ("car", (10, 20, 40, 60)), ("bike", (60, 10, 90, 40))
EXPECTED = {"a": Counter([CAR, BIKE]), "b": Counter([BIKE]), "c": Counter()}
CAR_LINE, BIKE_LINE = "0.208333333333333 0.5 0.25 0.5", "0.625 0.3125 0.25 0.375"


def coco_file(file: Path, categories: list[dict[str, Any]], file_name: str = "{}.jpg", **fields: Any) -> None:
    """A COCO file whose first category is the car, and whose ids start at 0; with more fields in each annotation."""
    car, bike = (next(c["id"] for c in categories if c["name"] == name) for name in ("car", "bike"))
    boxes = [(0, car, [10, 20, 30, 40]), (0, bike, [60.0, 10.0, 30.0, 30.0]), (1, bike, [60.0, 10.0, 30.0, 30.0])]
    content = {
        "info": {"description": "", "date_created": None},
        "licenses": [{"id": 0, "name": None, "url": ""}],
        "images": [
            {"id": i, "license": 0, "file_name": file_name.format(stem), "width": 120, "height": 80, "date_captured": 0}
            for i, stem in enumerate("abc")
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "segmentation": []} | fields
            for i, (image, category, box) in enumerate(boxes)
        ],
        "categories": categories,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def roboflow_coco(folder: Path) -> str:
    write_images(folder / "train", EXPECTED)
    root = {"id": 0, "name": "vehicles", "supercategory": "none"}
    inner = [{"id": i, "name": name, "supercategory": "vehicles"} for i, name in ((1, "bike"), (2, "car"))]
    coco_file(folder / "train/_annotations.coco.json", [root, *inner], area=1200.0, iscrowd=0)
    return f"coco:{folder}/train/_annotations.coco.json"


def roboflow_coco_with_a_class_called_like_the_project(folder: Path) -> str:
    write_images(folder / "train", EXPECTED)
    root = {"id": 0, "name": "bike", "supercategory": "none"}
    inner = [{"id": i, "name": name, "supercategory": "bike"} for i, name in ((1, "bike"), (2, "car"))]
    coco_file(folder / "train/_annotations.coco.json", [*inner, root], area=1200.0, iscrowd=0)
    return f"coco:{folder}/train/_annotations.coco.json"


def cvat_coco(folder: Path) -> str:
    write_images(folder / "images/default/day 1", EXPECTED)
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in ((1, "bike"), (2, "car"))]
    attributes = {"occluded": False, "rotation": 0.0}
    json_file = folder / "annotations/instances_default.json"
    coco_file(json_file, categories, "day 1/{}.jpg", area=900.0, iscrowd=0, attributes=attributes)
    return f"coco:{json_file}"


def label_studio_coco(folder: Path) -> str:
    write_images(folder / "images", EXPECTED)
    categories = [{"id": 0, "name": "bike"}, {"id": 1, "name": "car"}]
    coco_file(folder / "result.json", categories, "images\\{}.jpg", ignore=0, iscrowd=0)
    return f"coco:{folder}/result.json:{folder}"


def labelme_coco(folder: Path) -> str:
    write_images(folder / "JPEGImages", EXPECTED)
    categories = [{"supercategory": None, "id": i, "name": name} for i, name in ((0, "bike"), (1, "car"))]
    coco_file(folder / "annotations.json", categories, "JPEGImages/{}.jpg", area=None, iscrowd=0)
    return f"coco:{folder}/annotations.json"


def yolo_labels(folder: Path, car: int = 1, bike: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text(f"{car} {CAR_LINE}\n{bike} {BIKE_LINE}")
    (folder / "b.txt").write_text(f"{bike} {BIKE_LINE}\n")
    (folder / "c.txt").touch()


def roboflow_yolo(folder: Path) -> str:
    write_images(folder / "train/images", EXPECTED)
    yolo_labels(folder / "train/labels")
    lines = ["train: ../train/images", "val: ../valid/images", "", "nc: 2", "names: ['bike', 'car']", ""]
    (folder / "data.yaml").write_text("\n".join([*lines, "roboflow:", "  workspace: me", "  version: 1"]))
    return f"yolo:{folder}/data.yaml:train"


def cvat_yolo(folder: Path) -> str:
    write_images(folder / "images/train", EXPECTED)
    yolo_labels(folder / "labels/train")
    (folder / "data.yaml").write_text("names:\n  0: bike\n  1: car\npath: .\ntrain: train.txt\n")
    (folder / "train.txt").write_text("".join(f"data/images/train/{stem}.jpg\n" for stem in EXPECTED))
    return f"yolo:{folder}/data.yaml:train"


def cvat_darknet(folder: Path) -> str:
    write_images(folder / "obj_train_data", EXPECTED)
    yolo_labels(folder / "obj_train_data")
    (folder / "obj.names").write_text("bike\ncar\n")
    (folder / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    (folder / "train.txt").write_text("".join(f"data/obj_train_data/{stem}.jpg\n" for stem in EXPECTED))
    return f"yolo:{folder}:train"


def label_studio_yolo(folder: Path) -> str:
    write_images(folder / "images", EXPECTED)
    yolo_labels(folder / "labels")
    (folder / "classes.txt").write_text("bike\ncar")
    (folder / "notes.json").write_text('{"categories": [{"id": 0, "name": "bike"}, {"id": 1, "name": "car"}]}')
    return f"yolo:{folder}"


def labelme_yolo(folder: Path) -> str:
    """Of labelme2yolo on another machine: polygons, and absolute paths that lead nowhere."""
    write_images(folder / "images/train", EXPECTED)
    yolo_labels(folder / "labels/train")
    square = "0.5 0.125 0.75 0.125 0.75 0.5 0.5 0.5"
    (folder / "labels/train/b.txt").write_text(f"0 {square}\n")
    (folder / "dataset.yaml").write_text(
        "path: /home/me/YOLODataset\ntrain: images/train\nnames:\n  0: bike\n  1: car\n"
    )
    return f"yolo:{folder}/dataset.yaml:train"


@pytest.mark.parametrize(
    "export",
    [
        roboflow_coco,
        roboflow_coco_with_a_class_called_like_the_project,
        cvat_coco,
        label_studio_coco,
        labelme_coco,
        roboflow_yolo,
        cvat_yolo,
        cvat_darknet,
        label_studio_yolo,
        labelme_yolo,
    ],
    ids=lambda export: export.__name__,
)
def test_an_export_works_as_the_tool_writes_it(tmp_path: Path, export: Any) -> None:
    name = registered(export(tmp_path))
    assert MetadataCatalog.get(name).thing_classes == ["bike", "car"]
    found = table(name)
    for stem, boxes in EXPECTED.items():
        assert sorted(found[stem].elements()) == [
            (name, pytest.approx(corners, abs=1e-6)) for name, corners in sorted(boxes.elements())
        ]
    assert len(load_checked_dataset(name, num_classes=2)) == len(EXPECTED)
    assert ap_of_ground_truth(name, tmp_path / "output") == pytest.approx(100)


def test_a_class_called_none_is_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, EXPECTED)
    names = ("bike", "car", "none")
    coco_file(tmp_path / "a.json", [{"id": i, "name": name, "supercategory": "none"} for i, name in enumerate(names)])
    assert MetadataCatalog.get(registered(f"coco:{tmp_path}/a.json")).thing_classes == ["bike", "car", "none"]


def test_a_category_that_groups_others_is_a_class_if_it_has_objects(tmp_path: Path) -> None:
    write_images(tmp_path, EXPECTED)
    categories = [{"id": i, "name": name, "supercategory": "car"} for i, name in ((1, "bike"), (2, "truck"))]
    coco_file(tmp_path / "a.json", [{"id": 0, "name": "car", "supercategory": "none"}, *categories])
    assert MetadataCatalog.get(registered(f"coco:{tmp_path}/a.json")).thing_classes == ["car", "bike", "truck"]
