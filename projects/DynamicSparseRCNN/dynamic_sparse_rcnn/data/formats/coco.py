"""COCO annotation files: ``coco:<json>[:<image folder>][:<from>-<to>%[:<seed>]]``.

detectron2's ``load_coco_json`` drops objects with malformed polygons, which a detector of boxes does not need, and does
not name the file that is wrong. This reader does not; order, boxes and classes are the same.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..records import Record
from ..splits import SplitPart
from .base import (
    DATASET_FORMAT_REGISTRY,
    Classes,
    DatasetFormat,
    path_separators,
    records_of_part,
    split_part,
)
from .coco_json import CocoContent, read_coco
from .reading import is_url, join_image_path, require_folder

logger = logging.getLogger(__name__)

_FIRST = 5
_JSON_SUFFIX = re.compile(r"\.json(\.gz)?$", re.IGNORECASE)


@DATASET_FORMAT_REGISTRY.register()
@dataclass(frozen=True)
class CocoDataset(DatasetFormat):
    """A COCO annotation file, or part of its images.

    Attributes:
        json_file: the annotation file.
        image_folder: the folder of the images; None: found where annotation tools put it.
        part: which images; None: all.
    """

    prefix: ClassVar[str] = "coco"
    form: ClassVar[str] = "coco:<json>:<image folder>[:<from>-<to>%[:<seed>]]"

    json_file: str
    image_folder: str | None
    part: SplitPart | None = None

    @classmethod
    def parse(cls, rest: str) -> CocoDataset:
        """See :class:`DatasetFormat`. If colons are ambiguous, existing files decide, then the suffix .json."""
        paths, part = split_part(rest)
        json_file, image_folder = _split_paths(paths)
        return cls(os.path.expanduser(json_file), image_folder and os.path.expanduser(image_folder), part)

    @classmethod
    def names_in(cls, folder: Path) -> dict[str, str]:
        """By annotation file, as COCO and most tools name them; by folder, as Roboflow does.

        COCO's boxes come first: they are in ``instances_*.json``, beside captions and keypoints.
        """
        files = sorted([*folder.glob("annotations/*.json"), *folder.glob("*.json")])
        files.sort(key=lambda file: not file.name.startswith("instances"))
        by_folder = sorted(folder.glob("*/_annotations.coco.json"))
        named = {file.stem: f"{cls.prefix}:{file}" for file in files}
        return named | {file.parent.name: f"{cls.prefix}:{file}" for file in by_folder}

    def classes(self) -> Classes:
        """The categories sorted by id, as ``load_coco_json`` orders them."""
        content = read_coco(self.json_file)
        self._folder_of(content.images)
        return content.classes

    def records(self, classes: Classes) -> list[Record]:
        """The images, sorted by id, with boxes in ``BoxMode.XYWH_ABS``.

        Annotations of images that the file does not list are dropped, with a warning that counts them.
        """
        content = read_coco(self.json_file)
        if content.classes != classes:
            raise ValueError(f"The categories of {self.json_file} have changed since this run started. Restart it.")
        folder = self._folder_of(content.images)
        images = records_of_part(content.images, self.part, "file_name")
        objects = _objects_by_image(content, self.json_file)
        for image in images:
            image["file_name"] = join_image_path(folder, image["file_name"])
            image["annotations"] = objects[image["image_id"]]
        return sorted(images, key=lambda image: image["image_id"])

    def metadata(self) -> dict[str, str | int]:
        """See :class:`DatasetFormat`."""
        known = {"json_file": None if self.part else self.json_file, "image_root": self.image_folder}
        return {key: value for key, value in known.items() if value is not None}

    def _folder_of(self, images: Sequence[Record]) -> str:
        if self.image_folder is not None:
            require_folder(self.image_folder, "of the images", self.form)
            return self.image_folder
        folders = _usual_image_folders(self.json_file)
        for folder in folders:
            if os.path.isfile(join_image_path(folder, images[0]["file_name"])):
                return folder
        raise FileNotFoundError(
            f"The images of {self.json_file} were not found: {images[0]['file_name']!r} is in none of "
            f"{', '.join(folders)}. Name their folder: {self.form}."
        )


def _split_paths(text: str) -> tuple[str, str | None]:
    """The annotation file, and the image folder if there is one."""
    pairs = [(text[:position], text[position + 1 :]) for position in path_separators(text)]
    if not text or any(not first or not second for first, second in pairs):
        raise ValueError
    if not pairs or os.path.isfile(os.path.expanduser(text)):
        return text, None
    existing = [pair for pair in pairs if os.path.isfile(os.path.expanduser(pair[0]))]
    with_suffix = [pair for pair in pairs if _JSON_SUFFIX.search(pair[0])]
    return (existing or with_suffix or pairs)[0]


def _usual_image_folders(json_file: str) -> list[str]:
    """Where annotation tools put the images: beside the file, or where COCO itself and CVAT do."""
    if is_url(json_file):
        return [os.path.dirname(json_file)]
    subset = _JSON_SUFFIX.sub("", os.path.basename(json_file)).removeprefix("instances_")
    folders = ("", "images", subset, "../images", f"../images/{subset}", f"../{subset}")
    return [os.path.normpath(os.path.join(os.path.dirname(json_file), folder)) for folder in folders]


def _objects_by_image(content: CocoContent, json_file: str) -> dict[int | str, list[Record]]:
    listed = {image["image_id"] for image in content.images}
    objects: dict[int | str, list[Record]] = defaultdict(list)
    strays = []
    for annotation in content.annotations:
        image_id = annotation.pop("image_id")
        if image_id in listed:
            objects[image_id].append(annotation)
        else:
            strays.append(image_id)
    if strays:
        logger.warning(
            "%s: %d annotations are dropped: their 'image_id' is not in 'images', first: %s. Correct the ids, or add "
            "the images.",
            json_file,
            len(strays),
            strays[:_FIRST],
        )
    return objects
