"""COCO annotation files: reading with clear errors, class names, and what COCO's evaluation needs of them."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .annotations import BoxProblem, box_column, find_box_problems


@dataclass(frozen=True)
class CocoClasses:
    """Classes of a COCO file, ordered by category id as ``load_coco_json`` orders them."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]


def read_coco_json(json_file: str) -> dict[str, Any]:
    """The content of a COCO annotation file.

    Args:
        json_file: path of the file, or anything detectron2's ``PathManager`` can open.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not JSON, or has no images or no categories.
    """
    if not PathManager.isfile(json_file):
        raise FileNotFoundError(f"Annotation file {json_file} does not exist. Correct the path.")
    try:
        with PathManager.open(json_file) as file:
            coco = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{json_file} is not a JSON file: {error}. Name a COCO annotation file.") from error
    for key in ("images", "categories"):
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list) or not coco[key]:
            raise ValueError(
                f"{json_file} has no list of {key!r}: it is not a COCO annotation file of object detection, "
                f"or the list is empty. Add {key!r}, or name another file."
            )
    return coco


def coco_classes(json_file: str) -> CocoClasses:
    """Class names and category ids of a COCO file, sorted by category id.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is no COCO file, its categories have no distinct integer ids and no names, or its
            annotations use other category ids.
    """
    coco = read_coco_json(json_file)
    categories = coco["categories"]
    ids = [c.get("id") if isinstance(c, dict) else None for c in categories]
    if not all(isinstance(i, int) for i in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"{json_file}: the 'id' of 'categories' must be distinct integers, found {ids}.")
    if not all(isinstance(c.get("name"), str) for c in categories):
        raise ValueError(f"{json_file}: each of the 'categories' needs a 'name'; add the missing ones.")
    _check_category_ids(coco, json_file, ids)
    categories = sorted(categories, key=lambda category: category["id"])
    return CocoClasses(tuple(c["name"] for c in categories), tuple(c["id"] for c in categories))


def _check_category_ids(coco: dict[str, Any], json_file: str, known: list[Any]) -> None:
    annotations = coco.get("annotations", [])
    unknown = {annotation.get("category_id") for annotation in annotations}.difference(known)
    if not unknown:
        return
    affected = [a.get("image_id") for a in annotations if a.get("category_id") in unknown]
    file_names = {image.get("id"): image.get("file_name") for image in coco["images"]}
    first = [str(file_names.get(image_id)) for image_id in list(dict.fromkeys(affected))[:5]]
    raise ValueError(
        f"{json_file}: {len(affected)} annotations use category ids that 'categories' does not list: "
        f"{sorted(unknown, key=str)[:10]} (first images: {', '.join(first)}). "
        "Add these categories, or remove the annotations."
    )


def load_coco(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    """detectron2's ``load_coco_json``, its failures named by file.

    Args:
        json_file: path of the annotation file.
        image_root: folder of the images.
        name: name of the data set, whose metadata gets the class names.

    Returns:
        One dictionary an image, boxes in ``BoxMode.XYWH_ABS``, classes as contiguous ids.

    Raises:
        FileNotFoundError: if the annotation file does not exist.
        ValueError: if detectron2 refuses its content.
    """
    try:
        dicts: list[dict[str, Any]] = load_coco_json(json_file, image_root, name)
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{json_file} cannot be read as COCO annotations ({reason}). "
            "Repair the file, or write it again with the tool it comes from."
        ) from error
    return dicts


def evaluable_annotations(coco: dict[str, Any], origin: str) -> list[dict[str, Any]]:
    """The annotations of COCO content that can count as ground truth, in the form COCO's evaluation needs.

    Left out are boxes that no detection could ever match: not finite, without area, or outside of the image.
    Single pixels stay, so that the result is that of any COCO evaluation. A missing ``area`` (of the box)
    and ``iscrowd`` (0) are filled in. All ``id`` are renumbered from 1 if some are no positive integers:
    COCO's evaluation takes an id of 0 for "not matched". The input is not changed.

    Args:
        coco: content of a COCO file, boxes as absolute xywh pixels.
        origin: file or data set, named in errors.

    Raises:
        ValueError: if a ``bbox`` is not four numbers.
    """
    annotations = coco.get("annotations", [])
    usable = _usable(coco, annotations, lambda i: f"{origin} (image {annotations[i].get('image_id')})")
    completed = [_completed(annotations[i]) for i in np.flatnonzero(usable)]
    if all(isinstance(a.get("id"), int) and a["id"] > 0 for a in completed):
        return completed
    return [{**annotation, "id": i} for i, annotation in enumerate(completed, start=1)]


def _usable(coco: dict[str, Any], annotations: list[dict[str, Any]], where: Callable[[int], str]) -> np.ndarray:
    unknown = (np.inf, np.inf)
    sizes = {im.get("id"): (im.get("width", np.inf), im.get("height", np.inf)) for im in coco["images"]}
    image_sizes = np.array([sizes.get(a.get("image_id"), unknown) for a in annotations], dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = BoxMode.convert(box_column(annotations, where), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    usable: np.ndarray = find_box_problems(boxes, image_sizes.reshape(-1, 2), max_point_side=0.0) == BoxProblem.NONE
    return usable


def _completed(annotation: dict[str, Any]) -> dict[str, Any]:
    if "area" in annotation and "iscrowd" in annotation:
        return annotation
    _, _, width, height = annotation["bbox"]
    return {"area": width * height, "iscrowd": 0, **annotation}


def write_json(content: dict[str, Any], path: str) -> None:
    """Write ``content`` as JSON; a reader never sees a part of the file."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.part"
    with open(part, "w") as file:
        json.dump(content, file)
    os.replace(part, path)
