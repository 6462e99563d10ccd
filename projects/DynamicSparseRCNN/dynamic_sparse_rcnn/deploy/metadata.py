"""What an exported file says of its detector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

#: What files are called, by format.
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
#: The key of the file's entry that tells it from files of others.
MARK = "sparse_rcnn_version"


@dataclass(frozen=True)
class ExportMetadata:
    """Each field is an entry of the file, under its name, as JSON.

    Attributes:
        sparse_rcnn_version: of this package, when it wrote the file.
        checkpoint_sha256: of the checkpoint's file, in hexadecimal.
        class_names: by class.
        category_ids: by class, what the training set calls them in COCO's files.
        image_format: order of the channels, RGB or BGR. Mean and std are within the file.
        size: height and width of the input; None: any.
        divisibility: what height and width are multiples of, where they are free.
        short_edge: what images are resized to have as their shorter side, in pixels, where the size is free; 0: they
            are not.
        max_size: most pixels of the longer side.
        score_threshold: detections with a lower score are left out, if nobody says another.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped; 1: none is.
        nms_inside: whether the file does that itself.
        num_detections: most detections an image.
        precision: of weights and arithmetic: ``float32``; ``float16``: weights alone are stored so; ``int8``.
    """

    sparse_rcnn_version: str
    checkpoint_sha256: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_format: str
    size: tuple[int, int] | None
    divisibility: int
    short_edge: int
    max_size: int
    score_threshold: float
    nms_threshold: float
    nms_inside: bool
    num_detections: int
    precision: str = "float32"

    def to_entries(self) -> dict[str, str]:
        """The entries of the file."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_entries(cls, entries: Mapping[str, str], path: str) -> ExportMetadata:
        """Reads the entries of a file; others' are passed over.

        Raises:
            ValueError: this package did not write it, or an earlier version did, without all entries; names ``path``.
        """
        if MARK not in entries:
            raise ValueError(f"{path} was not written by dsrcnn export: it does not state classes and image sizes")
        if missing := [name for name in ENTRIES if name not in entries]:
            raise ValueError(f"{path} does not state {', '.join(missing)}: export it again with this version")
        values: dict[str, Any] = {name: json.loads(entries[name]) for name in ENTRIES}
        values = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        return cls(**values)


#: The names of all entries.
ENTRIES = tuple(field.name for field in fields(ExportMetadata))


def is_exported(path: object) -> bool:
    """Whether this is the path of an exported file, by its suffix."""
    return isinstance(path, (str, Path)) and Path(path).suffix in SUFFIXES.values()
