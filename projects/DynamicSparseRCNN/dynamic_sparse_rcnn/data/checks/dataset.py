"""A look at a data set before it is used: what is in it, what cannot be used, what must be repaired first."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..datasets import parse_dataset_name, register_dataset
from .boxes import BoxProblem, box_column, find_box_problems, integer_column
from .images import check_images
from .report import DatasetReport, DroppedBoxes

logger = logging.getLogger(__name__)

_FIRST_FILES = 5


@dataclass(frozen=True)
class _Annotations:
    """All annotations of a data set in one table.

    ``image`` (N,) position of each annotation's image, ``boxes`` (N, 4) float64 absolute xyxy pixels,
    ``classes`` (N,) int64, ``crowd`` (N,) bool, ``image_sizes`` (N, 2) width and height.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    image_sizes: np.ndarray


def check_dataset(
    dicts: list[dict[str, Any]], *, name: str, class_names: Sequence[str], num_classes: int
) -> tuple[list[dict[str, Any]], DatasetReport]:
    """Drop and count boxes that cannot be used, and refuse what cannot be dropped.

    Args:
        dicts: detectron2's data set dictionaries; they are not changed.
        name: name of the data set, for report and errors.
        class_names: names of the classes, as many as are known.
        num_classes: number of classes of the model.

    Returns:
        The dictionaries without unusable boxes (the given ones where nothing changes), and the report.

    Raises:
        FileNotFoundError: if images are missing.
        ValueError: if the model has more classes than there are names, a ``category_id`` is not an integer in
            [0, num_classes), a ``bbox`` not four numbers, or a ``bbox_mode`` missing or not absolute.
    """
    files = [record["file_name"] for record in dicts]
    _require_images(files, name)
    annotations = _tabulate(dicts, files)
    _require_class_ids(annotations, files, name, class_names, num_classes)
    problems = find_box_problems(annotations.boxes, annotations.image_sizes)
    report = _report(annotations, problems, files, name, _all_names(class_names, num_classes))
    return _without(dicts, annotations.image, problems != BoxProblem.NONE), report


def _require_images(files: Sequence[str], name: str) -> None:
    missing = [file for file in files if not PathManager.isfile(file)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images of {name} do not exist, first: "
            f"{', '.join(missing[:_FIRST_FILES])}. Correct the image folder, or remove these images from the "
            "annotations."
        )


def _tabulate(dicts: Sequence[dict[str, Any]], files: Sequence[str]) -> _Annotations:
    per_image = [record.get("annotations", ()) for record in dicts]
    image = np.repeat(np.arange(len(dicts)), [len(annotations) for annotations in per_image])
    annotations = list(chain.from_iterable(per_image))
    sizes = [(record.get("width", np.inf), record.get("height", np.inf)) for record in dicts]

    def where(i: int) -> str:
        return files[image[i]]

    boxes = box_column(annotations, where)
    modes = integer_column(annotations, "bbox_mode", where)
    for mode in np.unique(modes):
        if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            first = where(int(np.argmax(modes == mode)))
            raise ValueError(f"{first}: its bbox_mode is {mode}; use BoxMode.XYXY_ABS or BoxMode.XYWH_ABS.")
        boxes[modes == mode] = BoxMode.convert(boxes[modes == mode], BoxMode(mode), BoxMode.XYXY_ABS)
    return _Annotations(
        image=image,
        boxes=boxes,
        classes=integer_column(annotations, "category_id", where),
        crowd=np.array([annotation.get("iscrowd", 0) for annotation in annotations], dtype=bool),
        image_sizes=np.array(sizes, dtype=np.float64).reshape(-1, 2)[image],
    )


def _require_class_ids(
    annotations: _Annotations, files: Sequence[str], name: str, class_names: Sequence[str], num_classes: int
) -> None:
    remedy = "set MODEL.SparseRCNN.NUM_CLASSES to that number or to 0, or correct the annotations."
    if class_names and num_classes > len(class_names):
        # COCOEvaluator would fail, after the training, at the first detection of a class without a name.
        raise ValueError(
            f"{name}: the data set names {len(class_names)} classes, the model has {num_classes}: {remedy}"
        )
    wrong = (annotations.classes < 0) | (annotations.classes >= num_classes)
    if wrong.any():
        ids = np.unique(annotations.classes[wrong]).tolist()
        images = np.unique(annotations.image[wrong])[:_FIRST_FILES]
        raise ValueError(
            f"{name}: {wrong.sum()} boxes have class ids outside of [0, {num_classes}): {ids[:10]}, first in "
            f"{', '.join(files[i] for i in images)}. The data set names {len(class_names)} classes: {remedy}"
        )


def _all_names(class_names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    return tuple(class_names[:num_classes]) or tuple(f"class {i}" for i in range(num_classes))


def _report(
    annotations: _Annotations,
    problems: np.ndarray,
    files: Sequence[str],
    name: str,
    class_names: tuple[str, ...],
) -> DatasetReport:
    def dropped(problem: BoxProblem) -> DroppedBoxes:
        images = annotations.image[problems == problem]
        return DroppedBoxes(len(images), tuple(files[i] for i in np.unique(images)[:_FIRST_FILES]))

    usable = problems == BoxProblem.NONE
    counted = usable & ~annotations.crowd
    per_image = np.bincount(annotations.image[counted], minlength=len(files))
    fullest = int(per_image.argmax()) if files else -1
    class_counts = np.bincount(annotations.classes[counted], minlength=len(class_names))
    return DatasetReport(
        name=name,
        images=len(files),
        boxes=int(counted.sum()),
        crowd_boxes=int((usable & annotations.crowd).sum()),
        images_without_boxes=int((per_image == 0).sum()),
        most_boxes_in_an_image=int(per_image[fullest]) if files else 0,
        fullest_image=files[fullest] if files else "",
        class_names=class_names,
        class_counts=tuple(class_counts.tolist()),
        non_finite=dropped(BoxProblem.NON_FINITE),
        degenerate=dropped(BoxProblem.DEGENERATE),
        outside=dropped(BoxProblem.OUTSIDE),
    )


def _without(dicts: list[dict[str, Any]], image: np.ndarray, unusable: np.ndarray) -> list[dict[str, Any]]:
    cleaned = list(dicts)
    affected = np.unique(image[unusable])
    # The annotations of an image are neighbours in the table.
    for i, start in zip(affected, np.searchsorted(image, affected), strict=True):
        annotations = enumerate(dicts[i]["annotations"], start=start)
        cleaned[i] = {**dicts[i], "annotations": [a for row, a in annotations if not unusable[row]]}
    return cleaned


@dataclass(frozen=True)
class Inspection:
    """A data set that has been looked at: the usable part, what to tell of it, and whether that has warnings."""

    dicts: list[dict[str, Any]]
    text: str
    has_warnings: bool


def report_dataset(name: str, *, num_classes: int, num_proposals: int, is_train: bool = True) -> list[dict[str, Any]]:
    """As :func:`inspect_dataset`; logs what was found and returns the dictionaries."""
    found = inspect_dataset(name, num_classes=num_classes, num_proposals=num_proposals, is_train=is_train)
    logger.log(logging.WARNING if found.has_warnings else logging.INFO, found.text)
    return found.dicts


def inspect_dataset(name: str, *, num_classes: int, num_proposals: int, is_train: bool = True) -> Inspection:
    """As :func:`load_checked_dataset`, after a look at the image files.

    Args:
        name: see there.
        num_classes: see there.
        num_proposals: number of proposals an image, for the warning about images with more boxes.
        is_train: training goes on without images that cannot be used; an evaluation without them would be
            another one.

    Raises:
        FileNotFoundError, KeyError, ValueError: see there; or if images cannot be used (``check_images``): all of
            them, or any if this is not for training.
    """
    dicts = _load(name)
    usable, images = check_images(dicts)
    if images.unusable and not (is_train and usable):
        raise ValueError(
            f"{len(images.unusable)} of {len(dicts)} images of {name} cannot be used, {images.first_unusable()}"
        )
    cleaned, report = _check(usable, name, num_classes)
    warnings = [f"  WARNING: {warning}" for warning in images.warnings()]
    text = "\n".join([report.summary(num_proposals), *warnings])
    return Inspection(cleaned, text, bool(warnings or report.warnings(num_proposals)))


def load_checked_dataset(name: str, *, num_classes: int) -> list[dict[str, Any]]:
    """The dictionaries of a data set without unusable boxes.

    Args:
        name: a ``coco:`` or ``voc:`` name, registered on first use, or one that is registered already.
        num_classes: number of classes of the model.

    Raises:
        FileNotFoundError: if the annotations or images are missing.
        KeyError: if no data set of that name is registered.
        ValueError: if the data set is empty, or cannot be used as it is (``check_dataset``).
    """
    return _check(_load(name), name, num_classes)[0]


def _load(name: str) -> list[dict[str, Any]]:
    register_dataset(name)
    try:
        dicts: list[dict[str, Any]] = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        if parse_dataset_name(name) is not None:
            raise
        root = os.environ.get("DETECTRON2_DATASETS", "datasets")
        raise FileNotFoundError(
            f"Data set {name}: {error}. detectron2 looks for its own data sets below DETECTRON2_DATASETS, now "
            f"{root!r}: set it to the folder that holds coco/, VOC2007/ and so on."
        ) from error
    except ValueError as error:  # detectron2's loader of VOC meets a class that is none of VOC's, say
        if parse_dataset_name(name) is not None:
            raise
        raise ValueError(
            f"Data set {name} cannot be read: {error}. Data of your own are named by their files: "
            "'coco:<json>:<image folder>' or 'voc:<folder>:<split>'."
        ) from error
    if not dicts:
        raise ValueError(f"Data set {name} has no images. Name another one, or add images to it.")
    return dicts


def _check(dicts: list[dict[str, Any]], name: str, num_classes: int) -> tuple[list[dict[str, Any]], DatasetReport]:
    class_names = MetadataCatalog.get(name).get("thing_classes") or ()
    return check_dataset(dicts, name=name, class_names=class_names, num_classes=num_classes)
