"""Folders in Pascal VOC's layout, ``voc:<folder>:<split>[:<from>-<to>%[:<seed>]]``.

They hold ``Annotations/*.xml``, ``ImageSets/Main/<split>.txt`` and ``JPEGImages/``.

detectron2's ``load_voc_instances`` only knows .jpg images and does not name the file that is wrong. Here boxes, image
ids and the treatment of ``difficult`` objects are the same.
"""

from __future__ import annotations

import codecs
import glob
import logging
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from detectron2.structures import BoxMode

from ..images import IMAGE_SUFFIXES
from ..records import Record
from ..splits import SplitPart
from .base import DATASET_FORMAT_REGISTRY, Classes, DatasetFormat, records_of_part, split_last, split_part
from .reading import class_name, read_bytes, read_text, require_folder

logger = logging.getLogger(__name__)


@DATASET_FORMAT_REGISTRY.register()
@dataclass(frozen=True)
class VocDataset(DatasetFormat):
    """A split of a folder in Pascal VOC's layout, or part of one. The classes are those of all splits, by name."""

    prefix: ClassVar[str] = "voc"
    form: ClassVar[str] = "voc:<folder>:<split>"

    folder: str
    split: str
    part: SplitPart | None = None

    @classmethod
    def parse(cls, rest: str) -> VocDataset:
        """See :class:`DatasetFormat`."""
        rest, part = split_part(rest)
        folder, split = split_last(rest)
        return cls(os.path.expanduser(folder), split, part)

    @classmethod
    def names_in(cls, folder: Path) -> dict[str, str]:
        """By list of images."""
        return {file.stem: f"{cls.prefix}:{folder}:{file.stem}" for file in sorted(folder.glob("ImageSets/Main/*.txt"))}

    def classes(self) -> Classes:
        """See :func:`voc_class_names`."""
        require_folder(self.folder, "with Annotations, ImageSets and JPEGImages", self.form)
        return Classes.numbered_from_zero(voc_class_names(self.folder))

    def records(self, classes: Classes) -> list[Record]:
        """See :func:`load_voc`."""
        return records_of_part(load_voc(self.folder, self.split, classes.names), self.part, "image_id")

    def metadata(self) -> dict[str, str | int]:
        """What detectron2's ``PascalVOCDetectionEvaluator`` needs; 2012 selects the metric over all recalls."""
        return {"dirname": self.folder, "split": self.split, "year": 2012}


def voc_class_names(folder: str) -> tuple[str, ...]:
    """The sorted names of all objects in the folder, so that its splits have the same classes.

    Raises:
        FileNotFoundError: if there are no annotations.
        ValueError: if an annotation is not valid XML, an object has no name, or there is no object.
    """
    annotation_folder = os.path.join(folder, "Annotations")
    files = glob.glob(os.path.join(glob.escape(annotation_folder), "**", "*.xml"), recursive=True)
    if not files:
        raise FileNotFoundError(
            f"No *.xml files in {annotation_folder}. Name the folder that holds Annotations, ImageSets and "
            "JPEGImages (for VOC itself, VOC2007 or VOC2012)."
        )
    names = {_class_name(obj, file) for file in files for obj in _parse(file).findall("object")}
    if not names:
        raise ValueError(f"None of the {len(files)} files in {annotation_folder} has an <object>. Add objects.")
    return tuple(sorted(names))


def load_voc(folder: str, split: str, class_names: Sequence[str]) -> list[Record]:
    """Loads the images of a split with their objects, including ``difficult`` ones.

    VOC's corners are 1-based and inclusive: (xmin, ymin, xmax, ymax) is read as (xmin-1, ymin-1, xmax, ymax).

    Args:
        folder: holds Annotations, ImageSets and JPEGImages.
        split: name of a file in ImageSets/Main, without ``.txt``.
        class_names: the position of an object's name is its class.

    Returns:
        A record for each image, with boxes in ``BoxMode.XYXY_ABS``. Its ``image_id`` is the name in the split file.
        Annotations have ``difficult`` 0 or 1.

    Raises:
        FileNotFoundError: if the split, or annotations it lists, do not exist.
        ValueError: if an annotation is malformed.
    """
    image_ids = _read_split(folder, split)
    image_folder = os.path.join(folder, "JPEGImages")
    image_files = _image_files(image_folder)
    class_ids = {name: i for i, name in enumerate(class_names)}
    dicts = []
    for image_id in image_ids:
        # A missing image gets the usual name; the check of the data set reports it.
        image = os.path.join(image_folder, image_files.get(image_id, f"{image_id}.jpg"))
        dicts.append(_load_image(_annotation_file(folder, image_id), image, image_id, class_ids))
    return dicts


def _load_image(file: str, image: str, image_id: str, class_ids: dict[str, int]) -> Record:
    root = _parse(file)
    width, height = (_number(root, f"size/{side}", file) for side in ("width", "height"))
    if not (1 <= width < math.inf and 1 <= height < math.inf):
        raise ValueError(f"{file}: <size> is {width:g} x {height:g}. Correct it to the image's size in pixels.")
    return {
        "file_name": image,
        "image_id": image_id,
        "height": int(height),
        "width": int(width),
        "annotations": [_load_object(obj, file, class_ids) for obj in root.findall("object")],
    }


def _load_object(obj: ElementTree.Element, file: str, class_ids: dict[str, int]) -> Record:
    name = _class_name(obj, file)
    if name not in class_ids:
        raise ValueError(f"{file}: class {name!r} is not one of {sorted(class_ids)}. Rename it.")
    xmin, ymin, xmax, ymax = (_number(obj, f"bndbox/{k}", file) for k in ("xmin", "ymin", "xmax", "ymax"))
    return {
        "bbox": [xmin - 1, ymin - 1, xmax, ymax],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": class_ids[name],
        "difficult": int(obj.find("difficult") is not None and _number(obj, "difficult", file) != 0),
    }


def _read_split(folder: str, split: str) -> list[str]:
    split_folder = Path(folder, "ImageSets", "Main")
    split_file = split_folder / f"{split}.txt"
    if not split_file.is_file():
        found = sorted(path.stem for path in split_folder.glob("*.txt"))
        raise FileNotFoundError(
            f"{split_file} does not exist. Splits found: {', '.join(found[:20]) or 'none'}. Name one of them "
            "or write this file, with an image name without suffix on each line."
        )
    lines = [line.strip().replace("\\", "/") for line in read_text(str(split_file)).splitlines()]
    # The class-wise files of VOC have a second column, 1 or -1. A name may contain spaces too.
    names = [n if os.path.isfile(_annotation_file(folder, n)) else n.split()[0] for n in lines if n]
    image_ids = list(dict.fromkeys(names))
    if len(image_ids) < len(names):
        repeated = len(names) - len(image_ids)
        logger.warning("%s repeats image names on %d lines; each image is used once.", split_file, repeated)
    missing = [n for n in image_ids if not os.path.isfile(_annotation_file(folder, n))]
    if missing:
        first = ", ".join(_annotation_file(folder, n) for n in missing[:5])
        raise FileNotFoundError(
            f"{split_file} lists {len(missing)} images without annotations, first: {first}. Add these files "
            "(an image without objects has one too), or remove the lines."
        )
    return image_ids


def _image_files(image_folder: str) -> dict[str, str]:
    """Maps paths below ``image_folder`` without their suffix to those with it; .jpg takes precedence."""
    paths = [path for path in Path(image_folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    relative = sorted((p.relative_to(image_folder) for p in paths), key=lambda p: p.suffix == ".jpg")
    return {path.with_suffix("").as_posix(): path.as_posix() for path in relative}


def _annotation_file(folder: str, image_id: str) -> str:
    return os.path.join(folder, "Annotations", f"{image_id}.xml")


def _parse(file: str) -> ElementTree.Element:
    content = read_bytes(file)
    try:
        try:
            return ElementTree.fromstring(content)
        except (LookupError, ValueError):  # an encoding that the parser does not know, such as gb2312 or "ansi"
            return ElementTree.fromstring(_decoded(content))
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid XML: {error}. Repair it (save it as UTF-8), or remove it.") from error


def _decoded(content: bytes) -> str:
    """Decodes XML with the declared encoding, or as UTF-8 if that is unknown."""
    declared = re.search(rb"encoding\s*=\s*[\"']([\w.-]+)", content[:200])
    try:
        return content.decode(codecs.lookup(declared[1].decode()).name if declared else "utf-8")
    except LookupError:
        return content.decode("utf-8")


def _class_name(obj: ElementTree.Element, file: str) -> str:
    name = class_name(obj.findtext("name") or "")
    if not name:
        raise ValueError(f"{file}: an <object> has no <name>. Add its class, or remove the object.")
    return name


def _number(element: ElementTree.Element, path: str, file: str) -> float:
    text = element.findtext(path)
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = "is missing" if text is None else f"is {text!r}"
        raise ValueError(f"{file}: <{path}> {found}, a number is needed.") from None
