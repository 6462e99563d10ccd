"""Registers data sets that are named by their files (``.formats``), and compares their classes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .formats import Classes, find_splits, known_forms, parse_dataset_name
from .records import Record

logger = logging.getLogger(__name__)


def register_dataset(name: str) -> None:
    """Registers a data set that is named by its files with detectron2, once. Does nothing for names that are no paths.

    Raises:
        FileNotFoundError: the name is a path, but no file or folder.
        OSError: if the annotation file or a folder does not exist or cannot be read.
        ValueError: if the name or an annotation file is malformed, or two classes have the same name; or if it is a
            folder, of which one split has to be named, or a file without its format.
    """
    dataset = parse_dataset_name(name)
    if name in DatasetCatalog:
        return
    if dataset is None:
        _refuse_path(name)
        return
    classes = dataset.classes()
    _require_distinct_names(classes, name)
    MetadataCatalog.get(name).set(
        evaluator_type="coco",
        thing_classes=list(classes.names),
        thing_dataset_id_to_contiguous_id={category: i for i, category in enumerate(classes.category_ids)},
        **dataset.metadata(),
    )
    DatasetCatalog.register(name, partial(dataset.records, classes))


def read_records(name: str) -> list[Record]:
    """The records of a data set, registered or named by its files.

    Raises:
        OSError: files are missing.
        KeyError: no data set of that name is registered.
        ValueError: it cannot be read, or has no images.
    """
    register_dataset(name)
    try:
        records: list[Record] = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        if parse_dataset_name(name) is not None:
            raise
        root = os.environ.get("DETECTRON2_DATASETS", "datasets")
        raise FileNotFoundError(
            f"Data set {name}: {error}. detectron2 looks for its own data sets below DETECTRON2_DATASETS, now "
            f"{root!r}: set it to the folder that holds coco/, VOC2007/ and so on."
        ) from error
    except KeyError as error:
        raise KeyError(
            f"Data set {name!r} is not registered. Name your own data by their files: {known_forms()}; or name the "
            "module that registers it (--import)."
        ) from error
    except ValueError as error:  # detectron2's VOC loader met a class that is not one of VOC's, say
        if parse_dataset_name(name) is not None:
            raise
        raise ValueError(
            f"Data set {name} cannot be read: {error}. Name your own data by their files: {known_forms()}."
        ) from error
    if not records:
        raise ValueError(f"Data set {name} has no images. Name another one, or a larger part of it.")
    return records


def _refuse_path(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_dir():
        raise ValueError(f"{name} is a folder: name one of its splits, {', '.join(find_splits(name).values())}")
    if path.is_file():
        raise ValueError(f"{name} is a file: name it with its format, as in coco:{name}. Formats: {known_forms()}")
    if os.sep in name:
        raise FileNotFoundError(f"{name}: there is no such file or folder. Formats: {known_forms()}")


def _require_distinct_names(classes: Classes, name: str) -> None:
    repeated = [text for text, count in Counter(classes.names).items() if count > 1]
    if repeated:
        ids = [i for i, text in zip(classes.category_ids, classes.names, strict=True) if text == repeated[0]]
        raise ValueError(
            f"Data set {name}: {len(repeated)} class names are used more than once, first: {repeated[0]!r} by the "
            f"categories {ids}. Give each category a name of its own, or merge them."
        )


def check_same_classes(names: Sequence[str]) -> None:
    """Registers data sets and checks that they have the same classes in the same order.

    Data sets without class names are skipped.

    Raises:
        OSError, ValueError: see ``register_dataset``; or if the classes differ.
    """
    first: tuple[str, list[str]] | None = None
    for name in names:
        register_dataset(name)
        classes = MetadataCatalog.get(name).get("thing_classes")
        if not classes:
            continue
        first = first or (name, list(classes))
        if list(classes) != first[1]:
            raise ValueError(
                f"The data sets have different classes: {first[0]}: {first[1][:20]}; {name}: {list(classes)[:20]}; "
                f"{class_difference(first[1], list(classes))}. Give all the same names in the same order (in a COCO "
                "file, the order of the category ids)."
            )


def class_difference(first: Sequence[str], second: Sequence[str]) -> str:
    """How two lists differ, however long they are."""
    only_first, only_second = ([n for n in a if n not in b] for a, b in ((first, second), (second, first)))
    if only_first or only_second:
        return f"only the first has {only_first[:10]}, only the second {only_second[:10]}"
    changed = [i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other]
    return f"the same names, but in another order or number from class {changed[0] if changed else len(second)} on"


def with_known_classes(names: Sequence[str], num_classes: int) -> list[str]:
    """The training sets that tell the classes of a model, for an evaluation, which can do without.

    Leaves out sets with another number of classes, which the model cannot have been trained on, and (with a warning)
    sets that can no longer be read.
    """
    known = []
    for name in names:
        try:
            register_dataset(name)
        except (OSError, ValueError) as error:
            logger.warning("It is not known whether the test sets have the classes of the training set: %s", error)
        else:
            known += [name] * (len(MetadataCatalog.get(name).get("thing_classes") or ()) == num_classes)
    return known


def resolve_num_classes(cfg: CfgNode) -> int:
    """``MODEL.SparseRCNN.NUM_CLASSES``, or the number of classes of the training sets where that is 0.

    Raises:
        OSError, ValueError: see ``register_dataset``; or if the key is negative, or is 0 and there is no training set,
            one has no class names, or two have different classes.
    """
    num_classes: int = cfg.MODEL.SparseRCNN.NUM_CLASSES
    if num_classes < 0:
        raise ValueError(f"MODEL.SparseRCNN.NUM_CLASSES is {num_classes}: give the number of classes, or 0.")
    if num_classes > 0:
        return num_classes
    if not cfg.DATASETS.TRAIN:
        raise ValueError(
            "MODEL.SparseRCNN.NUM_CLASSES 0 takes the classes from the training set, but DATASETS.TRAIN is "
            "empty. Name a training set, or set the number of classes."
        )
    class_names = [_class_names(name) for name in cfg.DATASETS.TRAIN]
    check_same_classes(cfg.DATASETS.TRAIN)
    return len(class_names[0])


def _class_names(name: str) -> list[str]:
    register_dataset(name)
    class_names: list[str] | None = MetadataCatalog.get(name).get("thing_classes")
    if not class_names:
        known = "has no class names" if name in DatasetCatalog else "is not registered"
        raise ValueError(
            f"Training set {name!r} {known}, so the number of classes is unknown. Use one of "
            f"{known_forms()}, or set MODEL.SparseRCNN.NUM_CLASSES."
        )
    return class_names
