"""Data sets named by their files: ``coco:<json>:<image folder>`` and ``voc:<folder>:<split>``.

A part of a COCO file is named by a range of its images, and a seed if that is not 0:
``coco:<json>:<image folder>:0-80%`` and ``coco:<json>:<image folder>:80-100%`` are a split of one file.
"""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.utils import comm

from ..file_io import write_json
from .formats.coco import coco_classes, evaluable_annotations, load_coco, part_of_coco, read_coco_json
from .formats.voc import load_voc, voc_class_names
from .splits import SplitPart

logger = logging.getLogger(__name__)

_FORMS = {"coco": "coco:<json>:<image folder>[:<from>-<to>%[:<seed>]]", "voc": "voc:<folder>:<split>"}


@dataclass(frozen=True)
class CocoSource:
    """What ``coco:<json>:<image folder>[:<from>-<to>%[:<seed>]]`` names; without ``part``, all images."""

    json_file: str
    image_root: str
    part: SplitPart | None = None


@dataclass(frozen=True)
class VocSource:
    """What ``voc:<folder>:<split>`` names."""

    folder: str
    split: str


def parse_dataset_name(name: str) -> CocoSource | VocSource | None:
    """The files that a data set's name stands for, or None if it is an ordinary registered name.

    Paths are relative to the working directory, or absolute; a leading ``~`` is the home directory.

    Raises:
        ValueError: if the name starts with ``coco:`` or ``voc:`` but has not the form that belongs to it.
    """
    kind, separator, rest = name.partition(":")
    if kind not in _FORMS or not separator:
        return None
    first, second, *part = [*rest.split(":"), ""] if ":" not in rest else rest.split(":")
    if not (first and second) or len(part) > (2 if kind == "coco" else 0):
        raise ValueError(f"Data set {name!r} does not have the form {_FORMS[kind]!r}.")
    if kind == "voc":
        return VocSource(os.path.expanduser(first), second)
    return CocoSource(os.path.expanduser(first), os.path.expanduser(second), _parse_part(name, part))


def _parse_part(name: str, part: list[str]) -> SplitPart | None:
    try:
        return SplitPart.parse(*part) if part else None
    except ValueError as error:
        raise ValueError(f"Data set {name!r} does not have the form {_FORMS['coco']!r}: {error}") from error


def register_dataset(name: str) -> None:
    """Register a ``coco:`` or ``voc:`` data set with detectron2 on first use; other names are left alone.

    Class names come from the file: COCO's categories sorted by id, or the names of the objects in all
    annotations of the VOC folder. Nothing stays registered when this fails.

    Raises:
        FileNotFoundError: if the annotation file or a folder does not exist.
        ValueError: if the name or an annotation file is malformed.
    """
    source = parse_dataset_name(name)
    if source is None or name in DatasetCatalog:
        return
    if isinstance(source, CocoSource):
        _register_coco(name, source)
    else:
        _register_voc(name, source)


def _register_coco(name: str, source: CocoSource) -> None:
    classes = coco_classes(source.json_file)
    _require_folder(source.image_root, "of the images")
    MetadataCatalog.get(name).set(
        json_file=source.json_file,
        image_root=source.image_root,
        evaluator_type="coco",
        thing_classes=list(classes.names),
        thing_dataset_id_to_contiguous_id={category: i for i, category in enumerate(classes.category_ids)},
    )
    DatasetCatalog.register(name, partial(load_coco, source.json_file, source.image_root, source.part))


def _register_voc(name: str, source: VocSource) -> None:
    _require_folder(source.folder, "with Annotations, ImageSets and JPEGImages")
    class_names = voc_class_names(source.folder)
    MetadataCatalog.get(name).set(
        evaluator_type="coco",
        thing_classes=list(class_names),
        # The rest is for PascalVOCDetectionEvaluator; 2012 stands for the metric over all recalls.
        dirname=source.folder,
        split=source.split,
        year=2012,
    )
    DatasetCatalog.register(name, partial(load_voc, source.folder, source.split, class_names))


def _require_folder(folder: str, content: str) -> None:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"The folder {content}, {folder}, does not exist. Correct the path.")


def check_same_classes(names: Sequence[str]) -> None:
    """Register data sets and make sure that a class id means the same in all of them.

    Data sets without class names are passed over.

    Raises:
        FileNotFoundError, ValueError: see ``register_dataset``; or if two sets disagree in names or order.
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
                f"{_difference(first[1], list(classes))}. Give all the same names in the same order (in a COCO file, "
                "the order of the category ids)."
            )


def _difference(first: Sequence[str], second: Sequence[str]) -> str:
    """What long lists differ in."""
    only_first, only_second = ([n for n in a if n not in b] for a, b in ((first, second), (second, first)))
    if only_first or only_second:
        return f"only the first has {only_first[:10]}, only the second {only_second[:10]}"
    changed = [i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other]
    return f"the same names, but in another order or number from class {changed[0] if changed else len(second)} on"


def with_known_classes(names: Sequence[str], num_classes: int) -> list[str]:
    """Those of a model's training sets that tell what its classes are, for an evaluation, which does not need them.

    Left out are sets that have another number of classes, which it cannot have been trained on, and (with a warning)
    those that cannot be read any more.
    """
    known = []
    for name in names:
        try:
            register_dataset(name)
        except (OSError, ValueError) as error:
            logger.warning("Whether the test sets have the classes of the training set is not known: %s", error)
        else:
            known += [name] * (len(MetadataCatalog.get(name).get("thing_classes") or ()) == num_classes)
    return known


def resolve_num_classes(cfg: CfgNode) -> int:
    """``MODEL.SparseRCNN.NUM_CLASSES``, or the number of classes of the training sets where that is 0.

    Raises:
        FileNotFoundError, ValueError: see ``register_dataset``; and if the key is negative, or is 0 while
            there is no training set, one has no class names, or two disagree in them.
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
            f"Training set {name!r} {known}, so that the number of classes is unknown. Use "
            "'coco:<json>:<image folder>' or 'voc:<folder>:<split>', or set MODEL.SparseRCNN.NUM_CLASSES."
        )
    return class_names


def ensure_coco_json(name: str, output_dir: str) -> None:
    """Make ``json_file`` of the data set's metadata a file that ``COCOEvaluator`` can evaluate against.

    A ``voc:`` set or a part of a ``coco:`` set gets one, written to ``output_dir``. A ``coco:`` set keeps its own,
    unless that contains boxes that no detection could match (``evaluable_annotations``) or lacks keys that COCO's
    evaluation needs: then a corrected copy is written and used. Sets that were registered otherwise, such as
    ``coco_2017_val``, are left to detectron2, so that results on them stay comparable. To be called by all
    processes; the main one writes.

    Raises:
        FileNotFoundError, ValueError: see ``register_dataset``; or if a ``bbox`` is not four numbers.
    """
    source = parse_dataset_name(name)
    if source is None:
        return
    register_dataset(name)
    json_file, coco = _coco_content(name, source)
    annotations = evaluable_annotations(coco, json_file or name)
    dropped = len(coco["annotations"]) - len(annotations)
    if json_file is None or annotations != coco["annotations"]:
        json_file = os.path.join(output_dir, _file_name(name))
        if comm.is_main_process():
            write_json({**coco, "annotations": annotations}, json_file)
            logger.info("%s is evaluated against %s, without %d unusable boxes.", name, json_file, dropped)
    comm.synchronize()
    metadata = MetadataCatalog.get(name)
    vars(metadata).pop("json_file", None)  # a metadata value cannot be changed otherwise
    metadata.json_file = json_file


def _coco_content(name: str, source: CocoSource | VocSource) -> tuple[str | None, dict[str, Any]]:
    """The ground truth in COCO's format, and the file that holds exactly that, if there is one."""
    if isinstance(source, VocSource):
        return None, convert_to_coco_dict(name)
    coco = read_coco_json(source.json_file)
    return (None, part_of_coco(coco, source.part)) if source.part else (source.json_file, coco)


def _file_name(name: str) -> str:
    """A file name for a data set, whose name may be long and contain ``/`` and ``:``; unique to the name."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.")[-80:]
    return f"{readable}_{hashlib.sha256(name.encode()).hexdigest()[:8]}_coco_format.json"
