"""Converts a data set to another format, with its images."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from detectron2.data import MetadataCatalog

from ..file_io import whole_file
from .checks import require_usable_images
from .datasets import read_records
from .formats import Classes
from .formats.reading import read_text
from .formats.yolo import usual_label_file
from .ground_truth import coco_content
from .images import IMAGE_SUFFIXES
from .records import BoxProblem, BoxTable, Record

logger = logging.getLogger(__name__)

_OTHER_PLACE = "Name another folder or another split (--split)."


@dataclass(frozen=True)
class _Object:
    """An annotation: its class's name and number, and absolute xyxy pixels."""

    name: str
    number: int
    box: tuple[float, float, float, float]
    is_difficult: bool


@dataclass(frozen=True)
class _Image:
    """An image: its record, its path in the new data set, and its objects."""

    record: Record
    path: Path
    objects: list[_Object]


def convert_dataset(name: str, prefix: str, folder: str | Path, split: str) -> str:
    """Writes a data set in another format. Splits of one data set can go to one folder, one after the other.

    Unusable boxes, and crowds in VOC and YOLO, are dropped with a warning that counts them. Only COCO files keep areas
    that differ from the boxes'. VOC sorts classes by name, and has only those with objects. A conversion that was
    interrupted can be repeated.

    Args:
        name: the data set's.
        prefix: the new format's: coco, voc or yolo.
        folder: where to write.
        split: the split's name in the new data set.

    Returns:
        The name of the new data set.

    Raises:
        FileExistsError: if the folder has a different image of the same name, other labels of an image, another split
            of the same name, or other classes.
        OSError, KeyError, ValueError: if the data set cannot be read; if an image cannot be, or has another size than
            its annotation says; if there are no images, or the format is unknown; or if VOC or YOLO cannot tell two
            images apart, whose names differ only in the suffix.
    """
    if prefix not in _WRITERS:
        raise ValueError(f"Data sets can be converted to {', '.join(_WRITERS)}, not to {prefix!r}.")
    records = read_records(name)
    require_usable_images(records, name)
    metadata = MetadataCatalog.get(name)
    names = tuple(metadata.thing_classes)
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or range(len(names))
    return _WRITERS[prefix](records, Classes(names, tuple(ids)), Path(folder), split)


def _write_coco(records: list[Record], classes: Classes, folder: Path, split: str) -> str:
    paths = _relative_paths(records)
    if not all(isinstance(record["image_id"], int) for record in records):  # pycocotools takes strings for lists
        records = [record | {"image_id": i} for i, record in enumerate(records, start=1)]
    content = coco_content(records, classes)
    _warn(
        sum(len(record["annotations"]) for record in records) - len(content["annotations"]),
        "unusable boxes are dropped",
    )
    for image, path in zip(content["images"], paths, strict=True):
        image["file_name"] = path.as_posix()
    json_file = folder / "annotations" / f"{split}.json"
    text = json.dumps(content) + "\n"
    copies = [(record["file_name"], folder / "images" / path) for record, path in zip(records, paths, strict=True)]
    _write_all(copies, {json_file: text})
    return f"coco:{json_file}"


def _write_voc(records: list[Record], classes: Classes, folder: Path, split: str) -> str:
    images = _without_crowds(records, classes)
    stems = [image.path.with_suffix("").as_posix() for image in images]
    list_file, lines = folder / "ImageSets/Main" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems)
    _require_same(list_file, lines)
    texts = {}
    for image in images:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image.path.name
        size = {"width": image.record["width"], "height": image.record["height"], "depth": 3}
        _add(root, "size", size)
        for obj in image.objects:
            element = _add(root, "object", {"name": obj.name, "difficult": int(obj.is_difficult)})
            x1, y1, x2, y2 = obj.box
            _add(element, "bndbox", {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2})
        ElementTree.indent(root)
        file = (folder / "Annotations" / image.path).with_suffix(".xml")
        texts[file] = ElementTree.tostring(root, encoding="unicode")
    copies = [(image.record["file_name"], folder / "JPEGImages" / image.path) for image in images]
    _write_all(copies, texts | {list_file: lines})
    return f"voc:{folder}:{split}"


def _add(parent: ElementTree.Element, tag: str, values: dict[str, str | float]) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag)
    for name, value in values.items():
        is_whole = isinstance(value, float) and value.is_integer()
        ElementTree.SubElement(element, name).text = str(int(value) if is_whole else value)
    return element


def _write_yolo(records: list[Record], classes: Classes, folder: Path, split: str) -> str:
    images = _without_crowds(records, classes)
    file, place = folder / "data.yaml", f"images/{split}"
    description: dict[str, object] = {"names": dict(enumerate(classes.names))}
    if file.is_file():
        old = yaml.safe_load(read_text(str(file)))
        if not isinstance(old, dict) or old.get("names") != description["names"]:
            raise FileExistsError(f"{file} has other classes than {', '.join(classes.names)}. Name another folder.")
        description = old
    if description.setdefault(split, place) != place:
        raise FileExistsError(f"{file} has another value for {split!r} than {place}. {_OTHER_PLACE}")
    copies = [(image.record["file_name"], folder / place / image.path) for image in images]
    _require_no_others(folder / place, {target for _, target in copies})
    texts: dict[Path, str] = {}
    clipped = 0
    for image, (_, target) in zip(images, copies, strict=True):
        sides = np.array([image.record["width"], image.record["height"]])
        lines = []
        for obj in image.objects:
            corners = np.clip(np.array(obj.box).reshape(2, 2) / sides, 0, 1)
            clipped += not np.allclose(corners * sides, np.array(obj.box).reshape(2, 2))
            numbers = np.concatenate([corners.mean(0), corners[1] - corners[0]]).tolist()
            lines.append(" ".join([str(obj.number), *map(repr, numbers)]) + "\n")
        label_file, text = usual_label_file(target), "".join(lines)
        if texts.setdefault(label_file, text) != text:
            raise ValueError(f"{label_file} would have the labels of several images. Rename folders called labels.")
    _write_all(copies, texts)
    _warn(clipped, "boxes reach beyond their image and are clipped, as YOLO demands")
    _write_text(file, yaml.safe_dump(description, allow_unicode=True, sort_keys=False))
    return f"yolo:{file}:{split}"


_WRITERS: dict[str, Callable[[list[Record], Classes, Path, str], str]] = {
    "coco": _write_coco,
    "voc": _write_voc,
    "yolo": _write_yolo,
}


def _without_crowds(records: list[Record], classes: Classes) -> list[_Image]:
    paths = _relative_paths(records)
    repeated = [stem for stem, count in Counter(path.with_suffix("") for path in paths).items() if count > 1]
    unknown = [path for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES]
    if repeated or unknown:
        reason = f"{repeated[0]}.* are several images" if repeated else f"{unknown[0]} has none of the image suffixes"
        raise ValueError(f"VOC and YOLO find images by their names without suffix, but {reason}. Rename them.")
    table = BoxTable.from_records(records)
    usable = table.find_problems(max_point_side=0.0) == BoxProblem.NONE
    _warn(int((~usable).sum()), "unusable boxes are dropped")
    _warn(int((usable & table.crowd).sum()), "crowds are dropped, which this format does not have")
    images = [_Image(record, path, []) for record, path in zip(records, paths, strict=True)]
    annotations = [annotation for record in records for annotation in record["annotations"]]
    for i in np.flatnonzero(usable & ~table.crowd):
        x1, y1, x2, y2 = table.boxes[i].tolist()
        number = int(table.classes[i])
        is_difficult = bool(annotations[i].get("difficult", 0))
        images[table.image[i]].objects.append(_Object(classes.names[number], number, (x1, y1, x2, y2), is_difficult))
    return images


def _relative_paths(records: Sequence[Record]) -> list[Path]:
    """The images' paths below the folder that contains all of them."""
    files = [os.path.abspath(record["file_name"]) for record in records]
    common = os.path.commonpath([os.path.dirname(file) for file in files])
    return [Path(os.path.relpath(file, common)) for file in files]


def _write_all(copies: Sequence[tuple[str, Path]], texts: dict[Path, str]) -> None:
    """Copies images and then writes texts; nothing if the folder has others under one of their names.

    Args:
        copies: each image's source and target.
        texts: by file.
    """
    for file, text in texts.items():
        _require_same(file, text)
    for source, target in copies:
        if target.exists() and not filecmp.cmp(source, target, shallow=False):
            raise FileExistsError(f"{target} is another image than {source}. Name another folder.")
    for source, target in copies:
        if not target.exists():
            with open(source, "rb") as original, whole_file(target, sync=False) as copy:
                shutil.copyfileobj(original, copy)
    for file, text in texts.items():
        _write_text(file, text)


def _require_no_others(folder: Path, own: set[Path]) -> None:
    """Raises ``FileExistsError`` if the folder has images of another set; an interrupted conversion leaves its own."""
    others = {file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES} - own
    if others:
        raise FileExistsError(
            f"{folder} has {len(others)} images that are not in this data set, first: {min(others)}. {_OTHER_PLACE}"
        )


def _require_same(file: Path, text: str) -> None:
    if file.exists() and file.read_bytes() != text.encode():
        raise FileExistsError(f"{file} is there already, with other content. {_OTHER_PLACE}")


def _write_text(file: Path, text: str) -> None:
    with whole_file(file, sync=False) as opened:
        opened.write(text.encode())


def _warn(count: int, reason: str) -> None:
    if count:
        logger.warning("%d %s.", count, reason)
