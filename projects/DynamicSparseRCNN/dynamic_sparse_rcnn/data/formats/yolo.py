"""Folders in YOLO's layout, ``yolo:<data.yaml>:<split>`` or ``yolo:<folder>[:<split>]``, and parts of them.

supervision's reader does not name malformed lines or count missing label files; hence this one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from detectron2.structures import BoxMode
from PIL import Image

from ..images import IMAGE_ERRORS, IMAGE_SUFFIXES, rotated_size
from ..records import Record
from ..splits import SplitPart
from .base import (
    DATASET_FORMAT_REGISTRY,
    Classes,
    DatasetFormat,
    path_separators,
    records_of_part,
    split_last,
    split_part,
)
from .folders import split_of
from .reading import class_name, read_text
from .yolo_yaml import candidates, find_places, has_images, names_of, read_yaml

logger = logging.getLogger(__name__)

_YAML_SUFFIXES = (".yaml", ".yml")
# Files of class names, one per line, in folders without a data.yaml: from Label Studio, CVAT and LabelImg.
_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
# How far normalized coordinates may be outside of 0 to 1: tools round, and let polygons touch the border.
_TOLERANCE = 0.01


@DATASET_FORMAT_REGISTRY.register()
@dataclass(frozen=True)
class YoloDataset(DatasetFormat):
    """A split of a data set in YOLO's layout.

    Attributes:
        source: a data.yaml, or a folder with one, or with ``images``, ``labels`` and a file of class names.
        split: the split's name; empty: all images of the folder.
        part: which of its images; None: all.
    """

    prefix: ClassVar[str] = "yolo"
    form: ClassVar[str] = "yolo:<data.yaml or folder>:<split>"

    source: str
    split: str
    part: SplitPart | None = None

    @classmethod
    def parse(cls, rest: str) -> YoloDataset:
        """See :class:`DatasetFormat`."""
        rest, part = split_part(rest)
        whole = os.path.expanduser(rest)
        if os.path.isdir(whole) or (rest and not path_separators(rest) and not rest.endswith(_YAML_SUFFIXES)):
            return cls(whole, "", part)
        source, split = split_last(rest)
        return cls(os.path.expanduser(source), split, part)

    @classmethod
    def names_in(cls, folder: Path) -> dict[str, str]:
        """By the keys of a data.yaml whose images are there, or by folder."""
        file = str(folder / "data.yaml")
        if os.path.isfile(file):
            data = read_yaml(file)
            words = [word for word in data if split_of(word) and has_images(data, word, file)]
        else:
            words = [path.name for path in folder.glob("images/*") if path.is_dir()]
            words += [path.parent.name for path in folder.glob("*/images")]
        return {word: f"{cls.prefix}:{folder}:{word}" for word in words}

    def classes(self) -> Classes:
        """The ``names`` of the data.yaml, or the lines of ``classes.txt`` or ``obj.names``."""
        names = self._describe().names
        return Classes(tuple(names.values()), tuple(names))

    def records(self, classes: Classes) -> list[Record]:
        """The images, in the order of their list or of their paths, with boxes in ``BoxMode.XYXY_ABS``.

        Polygons become the boxes around them. Images without a label file have no objects; a warning counts them. An
        image that cannot be read has none either; the check of the images reports it.
        """
        description = self._describe()
        contiguous = {number: i for i, number in enumerate(classes.category_ids)}
        images = [image for place in description.places for image in _images_of(place, description.roots)]
        distinct = list(dict.fromkeys(images))
        if len(distinct) < len(images):
            logger.warning("%s lists %d images again; each is used once.", self, len(images) - len(distinct))
        label_files = {image: _label_file(image) for image in distinct}
        missing = {image for image, file in label_files.items() if not os.path.isfile(file)}
        if len(missing) == len(distinct):
            raise FileNotFoundError(
                f"None of the {len(missing)} images in {', '.join(description.places)} has a label file such as "
                f"{label_files[distinct[0]]}. Put labels there, or correct the folder."
            )
        root = description.roots[0] or "."
        named = [{"file_name": x, "image_id": Path(os.path.relpath(x, root)).as_posix()} for x in distinct]
        records = records_of_part(named, self.part, "image_id")
        empty = sum(record["file_name"] in missing for record in records)
        if empty:
            logger.warning("%s: %d of %d images have no label file; they count as empty.", self, empty, len(records))
        return [
            record
            | _size_and_annotations(record["file_name"], label_files[record["file_name"]], description, contiguous)
            for record in records
        ]

    def __str__(self) -> str:
        return f"{self.prefix}:{self.source}:{self.split}".rstrip(":")

    def _describe(self) -> _Description:
        if self.source.endswith(_YAML_SUFFIXES):
            return _describe_yaml(self.source, self.split)
        inner = os.path.join(self.source, "data.yaml")
        if os.path.isfile(inner) and self.split:
            return _describe_yaml(inner, self.split)
        return _describe_folder(self.source, self.split)


@dataclass(frozen=True)
class _Description:
    """What the data.yaml or the folder tells about a split.

    Attributes:
        names: class names by class number.
        roots: folders to which paths may be relative, the most likely first.
        places: folders and lists of images.
        has_keypoints: whether a box is followed by keypoints; if not, long lines are polygons.
    """

    names: dict[int, str]
    roots: tuple[str, ...]
    places: tuple[str, ...]
    has_keypoints: bool = False


def _describe_yaml(file: str, split: str) -> _Description:
    data = read_yaml(file)
    roots, places = find_places(data, split, file)
    return _Description(names_of(data, file), roots, places, "kpt_shape" in data)


def _describe_folder(folder: str, split: str) -> _Description:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"The folder {folder} does not exist. Correct the path in {YoloDataset.form!r}.")
    layouts = (f"{split}.txt", f"images/{split}", f"{split}/images") if split else ("images",)
    places = [os.path.join(folder, layout) for layout in layouts]
    place = next(filter(os.path.exists, places), None)
    if place is None:
        raise FileNotFoundError(f"None of {', '.join(places)} exists. Name a data.yaml, or a split of this folder.")
    for name_file in (os.path.join(folder, name) for name in _NAME_FILES):
        if os.path.isfile(name_file):
            lines = [class_name(line) for line in read_text(name_file).splitlines()]
            return _Description({i: line for i, line in enumerate(lines) if line}, (folder,), (place,))
    raise FileNotFoundError(
        f"{folder} has no class names: write {_NAME_FILES[0]} there, with one name per line, or name a data.yaml."
    )


def _images_of(place: str, roots: Sequence[str]) -> list[str]:
    if os.path.isdir(place):
        images = [str(path) for path in Path(place).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise FileNotFoundError(f"{place} has no images ({', '.join(IMAGE_SUFFIXES)}). Correct the folder.")
        return sorted(images)
    found = []
    for line in filter(str.strip, read_text(place).splitlines()):
        paths = candidates(line, (os.path.dirname(place), *roots))
        # The check of the data set reports a missing image.
        found.append(next(filter(os.path.isfile, paths), paths[0]))
    if not found:
        raise ValueError(f"{place} lists no images. Write one path per line.")
    return found


def usual_label_file(image: Path) -> Path:
    """The label file of an image: in ``labels`` in place of the last ``images`` of the path."""
    parts = list(image.with_suffix(".txt").parts)
    positions = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if positions:
        parts[positions[-1]] = "labels"
    return Path(*parts)


def _label_file(image: str) -> str:
    """The usual one; or that beside the image, if it is only there."""
    usual, beside = usual_label_file(Path(image)), Path(image).with_suffix(".txt")
    return str(beside if beside.is_file() and not usual.is_file() else usual)


def _size_and_annotations(image: str, label_file: str, description: _Description, contiguous: dict[int, int]) -> Record:
    size = _image_size(image)
    width, height = size or (1, 1)
    annotations = []
    if size and os.path.isfile(label_file):
        for number, line in enumerate(read_text(label_file).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                class_number, box = _parse_line(line, description.has_keypoints)
                if class_number not in contiguous:
                    raise ValueError(f"names class {class_number}, which is not one of {sorted(contiguous)[:20]}")
            except ValueError as error:
                raise ValueError(f"{label_file}, line {number}, {error}: {line[:80]!r}. Correct it.") from None
            scaled = [value * side for value, side in zip(box, (width, height, width, height), strict=True)]
            bbox = {"bbox": scaled, "bbox_mode": BoxMode.XYXY_ABS}
            annotations.append({**bbox, "category_id": contiguous[class_number]})
    return {"height": height, "width": width, "annotations": annotations}


def _image_size(image: str) -> tuple[int, int] | None:
    try:
        with Image.open(image) as opened:
            return rotated_size(opened, image)
    except IMAGE_ERRORS:
        return None


def _parse_line(line: str, has_keypoints: bool) -> tuple[int, tuple[float, float, float, float]]:
    """The class, and the normalized corners of a box or of the box around a polygon."""
    try:
        class_number, *values = map(float, line.split())
    except ValueError:
        raise ValueError("has values that are not numbers") from None
    values = values[:4] if has_keypoints else values
    if len(values) < 4 or len(values) % 2:
        raise ValueError(f"has {len(values)} numbers after the class; a box needs 4, a polygon at least 3 points")
    if not class_number.is_integer():
        raise ValueError("has a class that is not an integer")
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):
        raise ValueError("has coordinates outside of 0 to 1; they must be normalized by the image size")
    if len(values) == 4:
        x, y, width, height = values
        return int(class_number), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return int(class_number), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
