"""Detections in an image: as ``Instances``, as entries of a COCO result file, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from ..file_io import write_image, write_json
from ..visualization.figures import draw_detections


@dataclass(frozen=True)
class Prediction:
    """What a detector found in an image.

    Attributes:
        name: of the image, its file where it has one.
        image: (H, W, 3) uint8, RGB.
        instances: ``pred_boxes`` (absolute xyxy pixels of the image), ``scores`` and ``pred_classes``, on the CPU, best
            first.
        class_names: by class; where they are not known, the classes' numbers.
        category_ids: by class, what the training set calls them in COCO's files; where that is not known, the
            classes' numbers.
    """

    name: str
    image: npt.NDArray[np.uint8]
    instances: Instances
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    @property
    def labels(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[index] for index in self.instances.pred_classes.tolist()]

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """An entry of a COCO result file for each detection: ``image_id``, ``category_id``, ``bbox`` (absolute xywh
        pixels) and ``score``; and ``file_name``, which COCO's tools pass over."""
        entries: list[dict[str, Any]] = instances_to_coco_json(self.instances, image_id)
        return [
            entry | {"category_id": self.category_ids[entry["category_id"]], "file_name": self.name}
            for entry in entries
        ]

    def draw(self, scale: float | None = None) -> npt.NDArray[np.uint8]:
        """(H', W', 3) uint8 RGB: the image with its detections; small images are enlarged, by ``scale`` if given."""
        return draw_detections(self.image, self.instances, self.class_names, scale)

    def save(self, path: str | Path) -> None:
        """Writes :meth:`draw` to an image file.

        Raises:
            OSError: it cannot be written.
        """
        write_image(self.draw(), path)


class CocoResults:
    """Collects the detections in many images for one COCO result file."""

    def __init__(self) -> None:
        self._predictions: list[tuple[str, list[dict[str, Any]]]] = []

    def add(self, prediction: Prediction) -> None:
        """Takes the detections in one image."""
        self._predictions.append((prediction.name, prediction.to_coco()))

    def write(self, path: str | Path) -> None:
        """Writes the file: a list of entries, see :meth:`Prediction.to_coco`.

        An image's id is its file name where that is a number for all of them (as COCO's own images have it), and its
        position otherwise, from 1.
        """
        ids = _image_ids([name for name, _ in self._predictions])
        entries = [
            entry | {"image_id": image_id}
            for image_id, (_, found) in zip(ids, self._predictions, strict=True)
            for entry in found
        ]
        write_json(entries, path)


def _image_ids(names: Sequence[str]) -> list[int]:
    stems = [Path(name).stem for name in names]
    if all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(names) + 1))
