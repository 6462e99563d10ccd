"""COCO annotation files: reading with clear errors, class names, and what COCO's evaluation needs of them."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .annotations import BoxProblem, box_column, find_box_problems
from .splits import SplitPart

logger = logging.getLogger(__name__)

_FIRST = 5


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
    annotations = coco.setdefault("annotations", [])
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        raise ValueError(f"{json_file}: 'annotations' is no list of objects. Write it as COCO does, or leave it out.")
    return coco


def _check_images(images: Sequence[Any], json_file: str) -> None:
    for position, image in enumerate(images):
        reason = _image_problem(image)
        if reason:
            raise ValueError(f"{json_file}: number {position} of 'images' {reason}: {str(image)[:200]}. Correct it.")
    repeated = [image_id for image_id, count in Counter(image["id"] for image in images).items() if count > 1]
    if repeated:
        files = [image["file_name"] for image in images if image["id"] == repeated[0]]
        raise ValueError(
            f"{json_file}: {len(repeated)} ids of 'images' are used more than once, first: {repeated[:_FIRST]} "
            f"({', '.join(files[:_FIRST])}). Give each image an id of its own, and its annotations that 'image_id'."
        )


def _image_problem(image: Any) -> str | None:
    if not isinstance(image, dict):
        return "is no object"
    if not isinstance(image.get("id"), int | str):
        return "has no 'id'"
    if not isinstance(image.get("file_name"), str):
        return "has no 'file_name'"
    for key in ("width", "height"):
        if key not in image:
            return f"has no {key!r}"
        if not isinstance(image[key], int | float) or not image[key] > 0 or image[key] % 1:
            return f"has {key!r} {image[key]!r}, which is no positive whole number"
    return None


def coco_classes(json_file: str) -> CocoClasses:
    """Class names and category ids of a COCO file, sorted by category id.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is no COCO file, its categories have no distinct integer ids and no names, or its
            annotations use other category ids; or an image has no usable id, file name or size, or the id of another.
    """
    coco = read_coco_json(json_file)
    categories = coco["categories"]
    ids = [c.get("id") if isinstance(c, dict) else None for c in categories]
    if not all(isinstance(i, int) for i in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"{json_file}: the 'id' of 'categories' must be distinct integers, found {ids}.")
    if not all(isinstance(c.get("name"), str) for c in categories):
        raise ValueError(f"{json_file}: each of the 'categories' needs a 'name'; add the missing ones.")
    _check_images(coco["images"], json_file)
    _check_category_ids(coco, json_file, set(ids))
    categories = sorted(categories, key=lambda category: category["id"])
    return CocoClasses(tuple(c["name"] for c in categories), tuple(c["id"] for c in categories))


def _check_category_ids(coco: dict[str, Any], json_file: str, known: set[Any]) -> None:
    # A list cannot be looked up, and a boolean is an integer to Python.
    affected = [
        a for a in coco["annotations"] if type(a.get("category_id")) is not int or a["category_id"] not in known
    ]
    if not affected:
        return
    unknown = sorted({repr(a.get("category_id")) for a in affected})
    file_names = {image["id"]: image["file_name"] for image in coco["images"]}
    images = dict.fromkeys(file_names.get(i) for a in affected if isinstance(i := a.get("image_id"), int | str))
    raise ValueError(
        f"{json_file}: {len(affected)} annotations use category ids that 'categories' does not list: "
        f"[{', '.join(unknown[:10])}] (first images: {', '.join(map(str, list(images)[:_FIRST]))}). "
        "Add these categories, or remove the annotations."
    )


def part_of_coco(coco: dict[str, Any], part: SplitPart) -> dict[str, Any]:
    """The content with the images of one part alone, and their annotations; files listed twice stay together."""
    files = part.select(image["file_name"] for image in coco["images"])
    images = [image for image in coco["images"] if image["file_name"] in files]
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in coco["annotations"] if annotation.get("image_id") in ids]
    return {**coco, "images": images, "annotations": annotations}


def load_coco(json_file: str, image_root: str, name: str, part: SplitPart | None = None) -> list[dict[str, Any]]:
    """detectron2's ``load_coco_json``, its failures named by file.

    Annotations of images that the file does not list are left out, with a warning that counts them.

    Args:
        json_file: path of the annotation file.
        image_root: folder of the images.
        name: name of the data set, whose metadata gets the class names.
        part: which of the images; None: all.

    Returns:
        One dictionary an image, boxes in ``BoxMode.XYWH_ABS``, classes as contiguous ids.

    Raises:
        FileNotFoundError: if the annotation file does not exist.
        ValueError: if the content is malformed (``coco_classes``), or detectron2 refuses it.
    """
    coco = read_coco_json(json_file)
    _check_images(coco["images"], json_file)
    _warn_of_annotations_without_image(coco, json_file)
    try:
        dicts: list[dict[str, Any]] = load_coco_json(json_file, image_root, name)
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{json_file} cannot be read as COCO annotations ({reason}). "
            "Repair the file, or write it again with the tool it comes from."
        ) from error
    if part is None:
        return dicts
    ids = {image["id"] for image in part_of_coco(coco, part)["images"]}
    return [record for record in dicts if record["image_id"] in ids]


def _warn_of_annotations_without_image(coco: dict[str, Any], json_file: str) -> None:
    known = {image["id"] for image in coco["images"]}
    image_ids = [annotation.get("image_id") for annotation in coco["annotations"]]
    strays = [i for i in image_ids if not isinstance(i, int | str) or i not in known]
    if strays:
        logger.warning(
            "%s: %d annotations have an 'image_id' that 'images' does not list, first: %s. They are left out; "
            "correct the ids, or add the images.",
            json_file,
            len(strays),
            list(map(repr, strays))[:_FIRST],
        )


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
    annotations = coco["annotations"]
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
