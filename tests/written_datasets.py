"""Small data sets that the tests write, in all formats, and how detectron2 reads and evaluates them."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dynamic_sparse_rcnn.data.datasets import register_dataset
from dynamic_sparse_rcnn.data.ground_truth import ensure_coco_json

WIDTH, HEIGHT = 120, 80


@dataclass(frozen=True)
class Box:
    """A class name and 0-based, exclusive corners in pixels."""

    name: str
    corners: tuple[int, int, int, int]
    difficult: int = 0


# Written in all formats. The box of 1 x 1 pixel in "b" is what a click leaves, and no object.
CONTENT = {
    "a": [Box("cell", (0, 0, WIDTH, HEIGHT)), Box("ant", (10, 20, 40, 60)), Box("cell", (50, 5, 110, 70))],
    "b": [Box("bee", (3, 4, 4, 5)), Box("bee", (30, 30, 90, 75), difficult=1)],
    "c": [],
}


def table(name: str) -> dict[str, Counter]:
    """Image -> its boxes as (class name, corners), counted, as detectron2 gets them."""
    names = MetadataCatalog.get(name).thing_classes
    return {
        Path(record["file_name"]).stem: Counter(
            (
                names[obj["category_id"]],
                tuple(xyxy(obj).tolist()),
            )
            for obj in record["annotations"]
        )
        for record in DatasetCatalog.get(name)
    }


def voc_object(box: Box) -> str:
    x1, y1, x2, y2 = box.corners
    return (
        f"<object><name>{box.name}</name><difficult>{box.difficult}</difficult><bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    )


def write_voc(folder: Path, content: dict[str, list[Box]], suffix: str = ".jpg") -> None:
    for path in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / path).mkdir(parents=True, exist_ok=True)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    for stem, boxes in content.items():
        objects = "".join(voc_object(box) for box in boxes)
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        (folder / "JPEGImages" / f"{stem}{suffix}").touch()
    write_split(folder, "train", list(content))


def write_split(folder: Path, split: str, lines: Sequence[str]) -> None:
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))


def coco_content(content: dict[str, list[Box]]) -> dict[str, Any]:
    """Categories neither sorted nor contiguous, annotations without area and iscrowd, their ids from 0."""
    ids = {"cell": 7, "bee": 9, "ant": 2}
    annotations: list[dict[str, Any]] = []
    for image_id, boxes in enumerate(content.values(), start=1):
        for box in boxes:
            x1, y1, x2, y2 = box.corners
            identity = {"id": len(annotations), "image_id": image_id, "category_id": ids[box.name]}
            annotations.append({**identity, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    images = [
        {"id": i, "file_name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT}
        for i, stem in enumerate(content, start=1)
    ]
    categories = [{"id": i, "name": name} for name, i in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder: Path, coco: dict[str, Any]) -> str:
    """Writes the file beside a folder of images, returns the data set's name."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "boxes.json").write_text(json.dumps(coco))
    return f"coco:{folder}/boxes.json:{folder}/images"


def yolo_line(class_number: int, box: Box) -> str:
    x1, y1, x2, y2 = box.corners
    x, y, width, height = (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT
    return f"{class_number} {x!r} {y!r} {width!r} {height!r}\n"


def write_images(folder: Path, stems: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{stem}.jpg")


def write_yolo(folder: Path, content: dict[str, list[Box]], names: Sequence[str] = ("ant", "bee", "cell")) -> str:
    """Writes images and labels below a ``train``, and a data.yaml; returns the data set's name."""
    write_images(folder / "train/images", content)
    (folder / "train/labels").mkdir(exist_ok=True)
    for stem, boxes in content.items():
        lines = [yolo_line(names.index(box.name), box) for box in boxes]
        (folder / f"train/labels/{stem}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(f"train: train/images\nnames: {list(names)}\n")
    return f"yolo:{folder}/data.yaml:train"


def registered(name: str) -> str:
    register_dataset(name)
    return name


def xyxy(annotation: dict[str, Any]) -> np.ndarray:
    box = np.array([annotation["bbox"]], dtype=np.float64)
    corners: np.ndarray = BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)[0]
    return corners


def detect(name: str, seed: int = 0) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Inputs and detections: the ground truth of ``name`` moved at random, some missing, some of another class.

    The same for the same images in another format, whatever their order.
    """
    classes = MetadataCatalog.get(name).thing_classes
    pairs = []
    for record in DatasetCatalog.get(name):
        random = np.random.default_rng([seed, *Path(record["file_name"]).stem.encode()])
        found = []
        objects = sorted(
            # Rounded, since formats differ in the last digits.
            (np.round(xyxy(o), 6).tolist(), classes[o["category_id"]])
            for o in record["annotations"]
        )
        for box, class_name in objects:
            shift, score, lost, confused = random.normal(0, 4, 4), random.random(), random.random(), random.random()
            if lost > 0.2:
                category = (classes.index(class_name) + (confused < 0.1)) % len(classes)
                found.append((np.add(box, shift), score, category))
        boxes, scores, categories = zip(*found, strict=True) if found else ([], [], [])
        instances = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4)),
            scores=torch.tensor(scores, dtype=torch.float32),
            pred_classes=torch.tensor(categories, dtype=torch.int64),
        )
        pairs.append((record, {"instances": instances}))
    return pairs


def evaluate(evaluator: Any, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    evaluator.reset()
    for record, output in pairs:
        evaluator.process([record], [output])
    results: dict[str, Any] = evaluator.evaluate()
    return results


def ap_of_ground_truth(name: str, output_dir: Path) -> float:
    """AP of a data set's own boxes as detections, in percent; NaN if there are none to be found."""
    ensure_coco_json(name, str(output_dir))
    metadata = MetadataCatalog.get(name)
    category_ids = list(metadata.thing_dataset_id_to_contiguous_id)
    detections = [
        {"image_id": record["image_id"], "category_id": category_ids[obj["category_id"]], "bbox": box, "score": 0.5}
        for record in DatasetCatalog.get(name)
        for obj in record["annotations"]
        if (box := _visible_xywh(obj, record)) is not None
    ]
    if not detections:
        return math.nan
    with contextlib.redirect_stdout(None):
        truth = COCO(metadata.json_file)
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap = float(evaluation.stats[0])
    return math.nan if ap == -1 else 100 * ap


def _visible_xywh(obj: dict[str, Any], record: dict[str, Any]) -> list[float] | None:
    with np.errstate(over="ignore", invalid="ignore"):
        x1, y1, x2, y2 = xyxy(obj).tolist()
    visible = x1 < x2 and y1 < y2 and x2 > 0 and y2 > 0 and x1 < record["width"] and y1 < record["height"]
    return [x1, y1, x2 - x1, y2 - y1] if visible and math.isfinite(x2 - x1 + y2 - y1) else None
