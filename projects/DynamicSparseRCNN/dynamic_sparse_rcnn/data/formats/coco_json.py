"""Reading and checking COCO annotation files."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.structures import BoxMode

from ..records import Record
from .base import Classes
from .reading import class_name, is_text, read_bytes

logger = logging.getLogger(__name__)

_FIRST = 5
# Larger integers are not exact in every JSON reader, nor usable in COCO's evaluation.
_LARGEST_ID = 1 << 53
_LARGEST_SIDE = 1 << 31
_INTEGER = re.compile(r"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True)
class CocoContent:
    """The checked content of a COCO file, without what a detector of boxes does not need.

    Attributes:
        classes: sorted by category id.
        images: ``image_id``, ``file_name`` as written, ``height`` and ``width`` of each image.
        annotations: ``image_id`` (not necessarily of a listed image), contiguous ``category_id``, ``bbox``,
            ``bbox_mode``; ``iscrowd`` and ``area`` where given.
    """

    classes: Classes
    images: list[Record]
    annotations: list[Record]


def read_coco(json_file: str) -> CocoContent:
    """Reads and checks a COCO annotation file. Ids may be written as 1, 1.0 or "1".

    Args:
        json_file: a path or anything else detectron2's ``PathManager`` can open; may be compressed with gzip.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a COCO file; if categories lack names or distinct integer ids; if annotations have
            unknown category ids or an unsupported ``iscrowd`` or ``ignore``; or if images lack a distinct id, a file
            name or a size.
    """
    coco = _read_json(json_file)
    names = _category_names(coco["categories"], json_file)
    images, as_image_id = _checked_images(coco["images"], json_file)
    annotations = [
        a | {"image_id": _id(a.get("image_id"), as_image_id), "category_id": _id(a.get("category_id"), _as_integer)}
        for a in coco["annotations"]
    ]
    _check_category_ids(annotations, images, names, json_file)
    _check_flags(annotations, images, json_file)
    unused = _grouping_ids(coco["categories"], names) - {annotation["category_id"] for annotation in annotations}
    ids = tuple(sorted(names.keys() - unused))
    contiguous = {category: i for i, category in enumerate(ids)}
    kept = [_kept_fields(annotation, contiguous) for annotation in annotations]
    _warn_of_areas(annotations, kept, json_file)
    return CocoContent(Classes(tuple(names[i] for i in ids), ids), images, kept)


def _read_json(json_file: str) -> dict[str, list[Any]]:
    content = read_bytes(json_file)
    try:
        coco = json.loads(content)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, numbers too long, nested too deeply
        raise ValueError(f"{json_file} is not a JSON file in UTF-8: {error}. Name a COCO annotation file.") from error
    for key in ("images", "categories"):
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list) or not coco[key]:
            raise ValueError(
                f"{json_file} has no list of {key!r}: it is not a COCO annotation file of object detection, "
                f"or the list is empty. Add {key!r}, or name another file."
            )
    annotations = coco.setdefault("annotations", [])
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        raise ValueError(f"{json_file}: 'annotations' is not a list of objects. Write it as COCO does, or omit it.")
    return coco


def _as_integer(value: object) -> int | None:
    """The integer id written as 1, 1.0 or "1"; None for anything else."""
    is_whole = isinstance(value, float) and value.is_integer()
    if is_whole or (isinstance(value, str) and _INTEGER.fullmatch(value)):
        value = int(value)  # type: ignore[call-overload]
    return value if type(value) is int and abs(value) < _LARGEST_ID else None


def _as_text(value: object) -> str | None:
    """The id as a string, for files in which not all ids are integers."""
    if isinstance(value, str):
        return value
    number = _as_integer(value)
    return None if number is None else str(number)


def _id(value: object, read: Callable[[object], int | str | None]) -> int | str:
    """An id as it is read, or as it is written, for messages, if it cannot be: no other id equals that."""
    known = read(value)
    return str(value) if known is None else known


def _category_names(categories: Sequence[Any], json_file: str) -> dict[int, str]:
    ids = [_as_integer(c.get("id")) if isinstance(c, dict) else None for c in categories]
    known = [i for i in ids if i is not None]
    if len(set(known)) < len(ids):
        found = [c.get("id") if isinstance(c, dict) else c for c in categories]
        raise ValueError(
            f"{json_file}: the 'id' of 'categories' must be distinct integers, found {str(found)[:200]}. Number them."
        )
    names = [c.get("name") for c in categories]
    if not all(is_text(name) for name in names):
        raise ValueError(f"{json_file}: each of the 'categories' needs a 'name'; add the missing ones.")
    return {i: class_name(name) for i, name in zip(known, names, strict=True)}


def _grouping_ids(categories: Sequence[dict[str, Any]], names: dict[int, str]) -> set[int]:
    """Categories like the one that Roboflow adds: a supercategory of others, without one itself."""
    supercategories = [category.get("supercategory") for category in categories]
    return {
        i
        for i, category in zip(names, categories, strict=True)
        if category.get("supercategory") == "none" != category["name"] and category["name"] in supercategories
    }


def _checked_images(images: Sequence[Any], json_file: str) -> tuple[list[Record], Callable[[object], int | str | None]]:
    """The images, and the function that turns a written id into an ``image_id``."""
    for position, image in enumerate(images):
        reason = _image_problem(image)
        if reason:
            raise ValueError(f"{json_file}: 'images'[{position}] {reason}: {str(image)[:200]}. Correct it.")
    given = [image["id"] for image in images]
    as_text = all(isinstance(i, str) for i in given) or any(_as_integer(i) is None for i in given)
    as_id: Callable[[object], int | str | None] = _as_text if as_text else _as_integer
    ids = [as_id(i) for i in given]
    repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if repeated:
        files = [image["file_name"] for image, i in zip(images, ids, strict=True) if i == repeated[0]]
        raise ValueError(
            f"{json_file}: {len(repeated)} ids of 'images' are used more than once, first: {repeated[:_FIRST]} "
            f"({', '.join(files[:_FIRST])}). Give each image an id of its own, and its annotations that 'image_id'."
        )
    checked = [
        {"file_name": x["file_name"], "height": int(x["height"]), "width": int(x["width"]), "image_id": i}
        for x, i in zip(images, ids, strict=True)
    ]
    return checked, as_id


def _image_problem(image: Any) -> str | None:
    if not isinstance(image, dict):
        return "is not an object"
    if _as_text(image.get("id")) is None:
        return "has no 'id'"
    if not is_text(image.get("file_name")):
        return "has no 'file_name'"
    for key in ("width", "height"):
        if key not in image:
            return f"has no {key!r}"
        if not isinstance(image[key], int | float) or not 0 < image[key] < _LARGEST_SIDE or image[key] % 1:
            return f"has {key!r} {image[key]!r:.50}, which is not a positive integer"
    return None


def _check_category_ids(
    annotations: Sequence[Record], images: Sequence[Record], known: dict[int, str], json_file: str
) -> None:
    affected = [a for a in annotations if a["category_id"] not in known]
    if affected:
        unknown = sorted({str(a["category_id"]) for a in affected})
        raise ValueError(
            f"{json_file}: {len(affected)} annotations use category ids that 'categories' does not list: "
            f"[{', '.join(unknown[:10])}] ({_first_images(images, affected)}). "
            "Add these categories, or remove the annotations."
        )


def _check_flags(annotations: Sequence[Record], images: Sequence[Record], json_file: str) -> None:
    """An ``iscrowd`` of "0" would count as true; ``ignore`` would have no effect."""
    for key, allowed, remedy in (
        ("iscrowd", (0, 1), "Write 0 or 1, or leave it out"),
        ("ignore", (0,), "Set 'iscrowd' 1 for regions that must not count, or remove 'ignore'"),
    ):
        affected = [a for a in annotations if a.get(key, 0) not in allowed]
        if affected:
            raise ValueError(
                f"{json_file}: {len(affected)} annotations have {key!r} {affected[0][key]!r:.50} "
                f"({_first_images(images, affected)}). {remedy}."
            )


def _first_images(images: Sequence[Record], annotations: Sequence[Record]) -> str:
    file_names = {image["image_id"]: image["file_name"] for image in images}
    first = dict.fromkeys(file_names.get(a["image_id"]) for a in annotations)
    return f"first images: {', '.join(map(str, list(first)[:_FIRST]))}"


def _kept_fields(annotation: Record, contiguous: dict[int, int]) -> Record:
    kept: Record = {key: annotation[key] for key in ("bbox", "iscrowd", "image_id") if key in annotation}
    if _is_area(annotation.get("area")):
        kept["area"] = annotation["area"]
    return kept | {"bbox_mode": BoxMode.XYWH_ABS, "category_id": contiguous[annotation["category_id"]]}


def _is_area(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]


def _warn_of_areas(annotations: Sequence[Record], kept: Sequence[Record], json_file: str) -> None:
    wrong = [a["area"] for a, k in zip(annotations, kept, strict=True) if "area" in a and "area" not in k]
    if wrong:
        logger.warning(
            "%s: %d annotations have an 'area' that is no number or negative, first: %.50r. The box's area is used.",
            json_file,
            len(wrong),
            wrong[0],
        )
