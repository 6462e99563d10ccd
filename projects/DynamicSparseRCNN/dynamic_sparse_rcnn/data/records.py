"""The records of a data set as arrays, and which of their boxes are unusable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from detectron2.structures import BoxMode

#: A dictionary of an image or of an annotation, with the keys of detectron2's "Use Custom Datasets".
Record: TypeAlias = dict[str, Any]

# A box at most this many pixels wide and high marks a point, not an object. Pascal VOC's corners are inclusive: an
# object with xmin == xmax and ymin == ymax has sides of exactly 1.
MAX_POINT_SIDE = 1.0
# Far below a pixel, far above the rounding error of x + width - x.
_ROUNDING = 1e-6


class BoxProblem(IntEnum):
    """Why a box is unusable; ``NONE`` for a usable box."""

    NONE = 0
    NON_FINITE = 1
    DEGENERATE = 2
    OUTSIDE = 3


@dataclass(frozen=True)
class BoxTable:
    """The annotations of a data set, in the order of its images.

    Attributes:
        image: (N,) int64, index of each annotation's image.
        boxes: (N, 4) float64, absolute xyxy pixels.
        classes: (N,) int64.
        crowd: (N,) bool.
        image_sizes: (N, 2) float64, width and height of each annotation's image; infinite where unknown.
    """

    image: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    image_sizes: npt.NDArray[np.float64]

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> BoxTable:
        """Makes the table.

        Raises:
            ValueError: if a ``bbox`` is not four numbers, a ``bbox_mode`` is missing or not absolute, or a
                ``category_id`` is not an integer; names the image.
        """
        per_image = [record.get("annotations", ()) for record in records]
        image = np.repeat(np.arange(len(records)), [len(annotations) for annotations in per_image])
        annotations = list(chain.from_iterable(per_image))
        sizes = [(record.get("width", np.inf), record.get("height", np.inf)) for record in records]

        def where(i: int) -> str:
            file: str = records[image[i]]["file_name"]
            return file

        return cls(
            image=image,
            boxes=_xyxy(annotations, where),
            classes=_column(annotations, "category_id", "iu", (), "an integer", where).astype(np.int64),
            crowd=np.array([annotation.get("iscrowd", 0) for annotation in annotations], dtype=bool),
            image_sizes=np.array(sizes, dtype=np.float64).reshape(-1, 2)[image],
        )

    def find_problems(self, max_point_side: float = MAX_POINT_SIDE) -> npt.NDArray[np.int64]:
        """Finds the unusable boxes.

        A box is degenerate if a side is zero or negative, or if its part in the image is a point: both sides at most
        ``max_point_side``. Lines one pixel wide and boxes partly outside of the image are usable.

        Args:
            max_point_side: in pixels.

        Returns:
            (N,) int64, values of ``BoxProblem``.
        """
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        with np.errstate(invalid="ignore", over="ignore"):
            sides = high - low
            visible_sides = np.minimum(high, self.image_sizes) - np.maximum(low, 0)
            non_finite = ~(np.isfinite(self.boxes).all(axis=1) & np.isfinite(sides).all(axis=1))
            empty = (sides <= 0).any(axis=1)
            outside = (visible_sides <= 0).any(axis=1)
            point = (visible_sides <= max_point_side + _ROUNDING).all(axis=1)
        return np.select(
            [non_finite, empty, outside, point],
            [BoxProblem.NON_FINITE, BoxProblem.DEGENERATE, BoxProblem.OUTSIDE, BoxProblem.DEGENERATE],
            default=BoxProblem.NONE,
        ).astype(np.int64)


def _xyxy(annotations: Sequence[Record], where: Callable[[int], str]) -> npt.NDArray[np.float64]:
    boxes = _column(annotations, "bbox", "iuf", (4,), "four numbers", where).astype(np.float64)
    modes = _column(annotations, "bbox_mode", "iu", (), "an integer", where).astype(np.int64)
    for mode in np.unique(modes):
        if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            first = where(int(np.argmax(modes == mode)))
            raise ValueError(f"{first}: its bbox_mode is {mode}; use BoxMode.XYXY_ABS or BoxMode.XYWH_ABS.")
        with np.errstate(invalid="ignore", over="ignore"):
            boxes[modes == mode] = BoxMode.convert(boxes[modes == mode], BoxMode(mode), BoxMode.XYXY_ABS)
    return boxes


def _column(
    annotations: Sequence[Record],
    key: str,
    kinds: str,
    row_shape: tuple[int, ...],
    expected: str,
    where: Callable[[int], str],
) -> np.ndarray:
    """The values of ``key`` as one array, whose dtype is one of ``kinds``."""
    if not annotations:
        return np.zeros((0, *row_shape))
    values = [annotation.get(key) for annotation in annotations]
    column = _as_array(values)
    if column.dtype.kind in kinds and column.shape[1:] == row_shape:
        return column
    cells = (_as_array(value) for value in values)
    bad = [i for i, cell in enumerate(cells) if cell.dtype.kind not in kinds or cell.shape != row_shape]
    first = ", ".join(f"{values[i]!r} in {where(i)}" for i in bad[:5])
    raise ValueError(
        f"{len(bad)} annotations have a {key!r} that is not {expected}, first: {first}. "
        "Correct or remove these annotations."
    )


def _as_array(values: object) -> np.ndarray:
    try:
        return np.array(values)
    except ValueError:  # rows of different lengths
        return np.array(None)
