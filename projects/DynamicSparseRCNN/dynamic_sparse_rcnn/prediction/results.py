"""Detections in an image: as ``Instances``, as entries of a COCO result file, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from ..file_io import write_image
from ..visualization.figures import draw_detections

if TYPE_CHECKING:
    import supervision

JsonObject: TypeAlias = dict[str, Any]


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

    def to_coco(self, image_id: int = 0) -> list[JsonObject]:
        """An entry of a COCO result file for each detection: ``image_id``, ``category_id``, ``bbox`` (absolute xywh
        pixels) and ``score``; ``file_name`` and, of tracked ones, ``track_id``, which COCO's tools pass over."""
        entries: list[JsonObject] = instances_to_coco_json(self.instances, image_id)
        tracks = self.instances.track_ids.tolist() if self.instances.has("track_ids") else [None] * len(entries)
        return [
            entry
            | {"category_id": self.category_ids[entry["category_id"]], "file_name": self.name}
            | ({} if track is None else {"track_id": track})
            for entry, track in zip(entries, tracks, strict=True)
        ]

    def to_dict(self) -> JsonObject:
        """What was found, in types that JSON has: ``image``, ``width``, ``height``, and ``detections``, each with
        ``label``, ``class`` (its index), ``score``, ``box`` (absolute xyxy pixels) and, of a tracked one, ``track``."""
        found = self.instances
        tracks = found.track_ids.tolist() if found.has("track_ids") else [None] * len(found)
        columns = (self.labels, found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist())
        detections = [
            {"label": label, "class": index, "score": score, "box": box} | ({} if track is None else {"track": track})
            for label, index, score, box, track in zip(*columns, tracks, strict=True)
        ]
        height, width = self.image.shape[:2]
        return {"image": self.name, "width": width, "height": height, "detections": detections}

    def to_supervision(self) -> supervision.Detections:
        """The detections as supervision has them, with ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        return to_supervision(self.instances, self.labels)

    def draw(self, scale: float | None = None) -> npt.NDArray[np.uint8]:
        """(H', W', 3) uint8 RGB: the image with its detections; small images are enlarged, by ``scale`` if given."""
        return draw_detections(self.image, self.instances, self.class_names, scale)

    def save(self, path: str | Path) -> None:
        """Writes :meth:`draw` to an image file.

        Raises:
            OSError: it cannot be written.
        """
        write_image(self.draw(), path)


def to_supervision(instances: Instances, labels: Sequence[str]) -> supervision.Detections:
    """Detections on the CPU as supervision has them.

    Raises:
        ImportError: supervision is not installed.
    """
    import supervision

    found = supervision.Detections(
        xyxy=instances.pred_boxes.tensor.float().numpy(),
        confidence=instances.scores.float().numpy(),
        class_id=instances.pred_classes.numpy(),
        data={"class_name": np.array(labels, dtype=str)},
    )
    if instances.has("track_ids"):
        found.tracker_id = instances.track_ids.numpy()
    return found
