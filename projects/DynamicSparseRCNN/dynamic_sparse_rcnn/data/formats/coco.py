"""COCO annotation files: reading with clear errors, class names, and what COCO's evaluation needs of them.

detectron2's own ``load_coco_json`` leaves out objects whose polygons are malformed, which a detector of boxes does not
look at, and does not name the file that is wrong, hence this reader. Order, ids, boxes and classes are the same.
"""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..checks.boxes import BoxProblem, box_column, find_box_problems
from ..splits import SplitPart

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
    if len({isinstance(image["id"], str) for image in images}) > 1:
        first = [next(i["id"] for i in images if isinstance(i["id"], str) is is_text) for is_text in (True, False)]
        raise ValueError(
            f"{json_file}: some ids of 'images' are strings, others numbers: {first}. Make all of them numbers, also "
            "in the 'image_id' of annotations."
        )
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
            annotations use other category ids, or an ``iscrowd`` or ``ignore`` that is not supported; or an image has
            no usable id, file name or size, or the id of another.
    """
    return _checked_classes(read_coco_json(json_file), json_file)


def _checked_classes(coco: dict[str, Any], json_file: str) -> CocoClasses:
    categories = coco["categories"]
    ids = [c.get("id") if isinstance(c, dict) else None for c in categories]
    if not all(isinstance(i, int) for i in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"{json_file}: the 'id' of 'categories' must be distinct integers, found {ids}.")
    if not all(isinstance(c.get("name"), str) for c in categories):
        raise ValueError(f"{json_file}: each of the 'categories' needs a 'name'; add the missing ones.")
    _check_images(coco["images"], json_file)
    _check_category_ids(coco, json_file, set(ids))
    _check_flags(coco, json_file)
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
    raise ValueError(
        f"{json_file}: {len(affected)} annotations use category ids that 'categories' does not list: "
        f"[{', '.join(unknown[:10])}] ({_first_images(coco, affected)}). "
        "Add these categories, or remove the annotations."
    )


def _check_flags(coco: dict[str, Any], json_file: str) -> None:
    """``iscrowd`` "0" would count as true, and ``ignore`` has no effect on training and evaluation."""
    for key, allowed, remedy in (
        ("iscrowd", (0, 1), "Write 0 or 1, or leave it out"),
        ("ignore", (0,), "Set 'iscrowd' 1 for regions that are not to count, or remove 'ignore'"),
    ):
        affected = [a for a in coco["annotations"] if a.get(key, 0) not in allowed]
        if affected:
            raise ValueError(
                f"{json_file}: {len(affected)} annotations have {key!r} {affected[0][key]!r} "
                f"({_first_images(coco, affected)}). {remedy}."
            )


def _first_images(coco: dict[str, Any], annotations: Sequence[dict[str, Any]]) -> str:
    file_names = {image["id"]: image["file_name"] for image in coco["images"]}
    images = dict.fromkeys(file_names.get(i) for a in annotations if isinstance(i := a.get("image_id"), int | str))
    return f"first images: {', '.join(map(str, list(images)[:_FIRST]))}"


def part_of_coco(coco: dict[str, Any], part: SplitPart) -> dict[str, Any]:
    """The content with the images of one part alone, and their annotations; files listed twice stay together."""
    files = part.select(image["file_name"] for image in coco["images"])
    part_coco = {**coco, "images": [image for image in coco["images"] if image["file_name"] in files]}
    return {**part_coco, "annotations": _annotations_of_images(part_coco)}


def _annotations_of_images(coco: dict[str, Any]) -> list[dict[str, Any]]:
    """Those whose image is listed; the ids of others may be anything, also what cannot be looked up."""
    known = {image["id"] for image in coco["images"]}
    return [a for a in coco["annotations"] if isinstance(i := a.get("image_id"), int | float | str) and i in known]


def load_coco(json_file: str, image_root: str, part: SplitPart | None = None) -> list[dict[str, Any]]:
    """The images of a COCO file with their boxes, as detectron2's dictionaries, sorted by image id.

    Annotations of images that the file does not list are left out, with a warning that counts them. What is not
    needed for boxes (``segmentation``, ``keypoints``) is not looked at.

    Args:
        json_file: path of the annotation file.
        image_root: folder of the images.
        part: which of the images; None: all.

    Returns:
        One dictionary an image, boxes in ``BoxMode.XYWH_ABS``, classes as contiguous ids.

    Raises:
        FileNotFoundError: if the annotation file does not exist.
        ValueError: if the content is malformed (``coco_classes``).
    """
    coco = read_coco_json(json_file)
    class_ids = {category: i for i, category in enumerate(_checked_classes(coco, json_file).category_ids)}
    _warn_of_annotations_without_image(coco, json_file)
    if part is not None:
        coco = part_of_coco(coco, part)
    objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in _annotations_of_images(coco):
        kept: dict[str, Any] = {key: annotation[key] for key in ("bbox", "iscrowd") if key in annotation}
        kept |= {"bbox_mode": BoxMode.XYWH_ABS, "category_id": class_ids[annotation["category_id"]]}
        objects[annotation["image_id"]].append(kept)
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": objects[image["id"]],
        }
        for image in sorted(coco["images"], key=lambda image: image["id"])
    ]


def _warn_of_annotations_without_image(coco: dict[str, Any], json_file: str) -> None:
    listed = set(map(id, _annotations_of_images(coco)))
    strays = [annotation.get("image_id") for annotation in coco["annotations"] if id(annotation) not in listed]
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

    Left out are boxes that no detection could ever match: not finite, without area, outside of the image, or of an
    image that is not listed.
    Single pixels stay, so that the result is that of any COCO evaluation. A missing ``area`` (of the box)
    and ``iscrowd`` (0) are filled in. All ``id`` are renumbered from 1 if they are no distinct positive integers:
    COCO's evaluation takes an id of 0 for "not matched". The input is not changed.

    Args:
        coco: content of a COCO file, boxes as absolute xywh pixels.
        origin: file or data set, named in errors.

    Raises:
        ValueError: if a ``bbox`` is not four numbers.
    """
    annotations = _annotations_of_images(coco)
    usable = _usable(coco, annotations, lambda i: f"{origin} (image {annotations[i].get('image_id')})")
    completed = [_completed(annotations[i]) for i in np.flatnonzero(usable)]
    ids = [a.get("id") for a in completed]
    if all(isinstance(i, int) and i > 0 for i in ids) and len(set(ids)) == len(ids):
        return completed
    return [{**annotation, "id": i} for i, annotation in enumerate(completed, start=1)]


def _usable(coco: dict[str, Any], annotations: list[dict[str, Any]], where: Callable[[int], str]) -> np.ndarray:
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    image_sizes = np.array([sizes[annotation["image_id"]] for annotation in annotations], dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = BoxMode.convert(box_column(annotations, where), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    usable: np.ndarray = find_box_problems(boxes, image_sizes.reshape(-1, 2), max_point_side=0.0) == BoxProblem.NONE
    return usable


def _completed(annotation: dict[str, Any]) -> dict[str, Any]:
    if "area" in annotation and "iscrowd" in annotation:
        return annotation
    _, _, width, height = annotation["bbox"]
    return {"area": width * height, "iscrowd": 0, **annotation}
