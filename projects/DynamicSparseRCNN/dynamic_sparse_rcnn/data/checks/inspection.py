"""Checks a data set before it is used: what is unusable is dropped and counted, or an error."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from detectron2.data import MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.utils.file_io import PathManager

from ..datasets import read_records
from ..formats.reading import is_url
from ..mapper import Resize
from ..records import BoxProblem, BoxTable, Record
from .images import ImageReport, check_images
from .report import DatasetReport

logger = logging.getLogger(__name__)

_FIRST_FILES = 5


@dataclass(frozen=True)
class Inspection:
    """A checked data set.

    Attributes:
        records: what can be used.
        text: the report, of several lines.
        has_warnings: whether the report has any.
    """

    records: list[Record]
    text: str
    has_warnings: bool


def report_dataset(
    name: str, *, num_classes: int, num_proposals: int, resize: Resize | None = None, is_train: bool = True
) -> list[Record]:
    """As :func:`inspect_dataset`, but logs the report and returns the usable records."""
    found = inspect_dataset(
        name, num_classes=num_classes, num_proposals=num_proposals, resize=resize, is_train=is_train
    )
    logger.log(logging.WARNING if found.has_warnings else logging.INFO, found.text)
    return found.records


def inspect_dataset(
    name: str, *, num_classes: int, num_proposals: int, resize: Resize | None = None, is_train: bool = True
) -> Inspection:
    """Checks image files and annotations of a data set.

    Args:
        name: see :func:`load_checked_dataset`.
        num_classes: number of classes of the model.
        num_proposals: proposals per image, for the warning about images with more boxes.
        resize: how images are resized for the network; finds those that would vanish.
        is_train: unusable images are dropped for a training, but an error for an evaluation.

    Raises:
        OSError, KeyError, ValueError: see :func:`load_checked_dataset`; or if any image (for a training: every image)
            is unusable.
    """
    records = read_records(name)
    usable, images = check_images(records, resize)
    if not (is_train and usable):
        _require_usable(images, records, name)
    cleaned, report = _check(usable, name, num_classes)
    warnings = [*report.warnings(num_proposals), *images.warnings()]
    text = "\n".join([report.summary(num_proposals), *(f"  WARNING: {warning}" for warning in warnings)])
    return Inspection(cleaned, text, bool(warnings))


def report_training_sets(
    name: str | Sequence[str],
    *,
    num_classes: int,
    num_proposals: int,
    resize: Resize | None = None,
    filter_empty: bool = False,
) -> list[Record]:
    """The checked records of training sets together; logs what each holds.

    Args:
        name: of one data set, or of several.
        num_classes: see :func:`inspect_dataset`, as the others.
        num_proposals: see there.
        resize: see there.
        filter_empty: whether images without objects are left out.

    Raises:
        OSError, KeyError, ValueError: see there; or if there is no object to learn from.
    """
    names = [name] if isinstance(name, str) else list(name)
    records: list[Record] = []
    for one in names:
        records += report_dataset(one, num_classes=num_classes, num_proposals=num_proposals, resize=resize)
    require_boxes(records, names)
    return filter_images_with_only_crowd_annotations(records) if filter_empty else records


def require_boxes(records: Sequence[Record], names: Sequence[str]) -> None:
    """Raises ``ValueError`` if training sets have no object to learn from.

    Args:
        records: those of all sets together.
        names: the names of the sets.
    """
    annotations = [annotation for record in records for annotation in record.get("annotations", ())]
    if all(annotation.get("iscrowd", 0) for annotation in annotations):
        reason = (
            f": all {len(annotations)} are crowds. Set 'iscrowd' 0 for those that are single objects."
            if annotations
            else ". Name sets with annotations."
        )
        raise ValueError(f"The training sets {', '.join(names)} have no usable box to learn from{reason}")


def load_checked_dataset(name: str, *, num_classes: int) -> list[Record]:
    """Loads the records of a data set, without unusable boxes.

    Args:
        name: a data set named by its files, or a registered one.
        num_classes: number of classes of the model.

    Raises:
        OSError: if the annotations or images are missing.
        KeyError: if no data set of that name is registered.
        ValueError: if the data set is empty, or for the reasons of :func:`check_records`.
    """
    return _check(read_records(name), name, num_classes)[0]


def _check(records: list[Record], name: str, num_classes: int) -> tuple[list[Record], DatasetReport]:
    class_names = MetadataCatalog.get(name).get("thing_classes") or ()
    return check_records(records, name=name, class_names=class_names, num_classes=num_classes)


def check_records(
    records: list[Record], *, name: str, class_names: Sequence[str], num_classes: int
) -> tuple[list[Record], DatasetReport]:
    """Drops and counts unusable boxes.

    Args:
        records: the data set's; not changed.
        name: the data set's, for report and errors.
        class_names: as far as they are known.
        num_classes: number of classes of the model.

    Returns:
        The records without unusable boxes (the same objects where nothing changes), and the report.

    Raises:
        FileNotFoundError: if images are missing.
        ValueError: if the model has more classes than there are names, a ``category_id`` is not an integer in
            [0, num_classes), a ``bbox`` not four numbers, or a ``bbox_mode`` missing or not absolute.
    """
    files = [record["file_name"] for record in records]
    _require_images(files, name)
    table = BoxTable.from_records(records)
    _require_class_ids(table, files, name, class_names, num_classes)
    problems = table.find_problems()
    names = tuple(class_names[:num_classes]) or tuple(f"class {i}" for i in range(num_classes))
    report = DatasetReport.of(table, problems, name, files, names)
    return _without(records, table.image, problems != BoxProblem.NONE), report


def require_usable_images(records: Sequence[Record], name: str) -> None:
    """Checks that every image of a data set can be used.

    Args:
        records: the data set's.
        name: its name, for errors.

    Raises:
        FileNotFoundError: if images are missing.
        ValueError: if images cannot be read, or have another size than annotated.
    """
    _require_images([record["file_name"] for record in records], name)
    _require_usable(check_images(records)[1], records, name)


def _require_usable(images: ImageReport, records: Sequence[Record], name: str) -> None:
    if images.unusable:
        raise ValueError(
            f"{len(images.unusable)} of {len(records)} images of {name} cannot be used, {images.first_unusable()}"
        )


def _require_images(files: Sequence[str], name: str) -> None:
    missing = [file for file in files if not is_url(file) and not PathManager.isfile(file)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images of {name} do not exist, first: "
            f"{', '.join(missing[:_FIRST_FILES])}. Correct the image folder, or remove these images from the "
            "annotations."
        )


def _require_class_ids(
    table: BoxTable, files: Sequence[str], name: str, class_names: Sequence[str], num_classes: int
) -> None:
    remedy = (
        "set MODEL.SparseRCNN.NUM_CLASSES to that number or to 0 (of a lazy config model.head.stages.num_classes to "
        "that number), or correct the annotations."
    )
    if class_names and num_classes > len(class_names):
        # COCOEvaluator would fail, after the training, at the first detection of a class without a name.
        raise ValueError(
            f"{name}: the data set names {len(class_names)} classes, the model has {num_classes}: {remedy}"
        )
    wrong = (table.classes < 0) | (table.classes >= num_classes)
    if wrong.any():
        ids = np.unique(table.classes[wrong]).tolist()
        images = np.unique(table.image[wrong])[:_FIRST_FILES]
        raise ValueError(
            f"{name}: {wrong.sum()} boxes have class ids outside of [0, {num_classes}): {ids[:10]}, first in "
            f"{', '.join(files[i] for i in images)}. The data set names {len(class_names)} classes: {remedy}"
        )


def _without(records: list[Record], image: npt.NDArray[np.int64], unusable: npt.NDArray[np.bool_]) -> list[Record]:
    cleaned = list(records)
    affected = np.unique(image[unusable])
    # In the table, the annotations of an image follow each other.
    for i, start in zip(affected, np.searchsorted(image, affected), strict=True):
        annotations = enumerate(records[i]["annotations"], start=start)
        cleaned[i] = {**records[i], "annotations": [a for row, a in annotations if not unusable[row]]}
    return cleaned
