"""What annotation dictionaries hold, as arrays, and what is wrong with their boxes."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

# A box this many pixels wide and high, or smaller, marks one point and no object. Pascal VOC's corners are
# inclusive, so that an object with xmin == xmax and ymin == ymax arrives here with sides of exactly 1.
MAX_POINT_SIDE = 1.0
# Far below a pixel, far above the rounding error of x + width - x.
_ROUNDING = 1e-6


class BoxProblem(IntEnum):
    """Why a box cannot be used; ``NONE`` for a usable box."""

    NONE = 0
    NON_FINITE = 1
    DEGENERATE = 2
    OUTSIDE = 3


def find_box_problems(boxes: np.ndarray, image_sizes: np.ndarray, max_point_side: float = MAX_POINT_SIDE) -> np.ndarray:
    """Sort boxes into usable ones and the kinds of ``BoxProblem``.

    A box is degenerate if a side is zero or negative, or if it is a single point: both sides are at most
    ``max_point_side``. A line one pixel wide is kept. Boxes partly outside of the image are kept as well.

    Args:
        boxes: (N, 4) float, absolute xyxy pixels.
        image_sizes: (N, 2) float, width and height of each box's image; infinite where unknown.
        max_point_side: in pixels.

    Returns:
        (N,) int64, values of ``BoxProblem``: the first that applies, in the order of the enumeration.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
        non_finite = ~(np.isfinite(boxes).all(axis=1) & np.isfinite(sides).all(axis=1))
        degenerate = (sides <= 0).any(axis=1) | (sides <= max_point_side + _ROUNDING).all(axis=1)
        outside = ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= image_sizes)).any(axis=1)
    return np.select(
        [non_finite, degenerate, outside],
        [BoxProblem.NON_FINITE, BoxProblem.DEGENERATE, BoxProblem.OUTSIDE],
        default=BoxProblem.NONE,
    ).astype(np.int64)


def box_column(annotations: Sequence[dict[str, Any]], where: Callable[[int], str]) -> np.ndarray:
    """The ``bbox`` of every annotation as (N, 4) float64, in whatever box mode they have.

    Args:
        annotations: dictionaries of detectron2 or of a COCO file.
        where: names the file, and image, of an annotation given by its position; for the error.

    Raises:
        ValueError: if a ``bbox`` is missing or is not four numbers.
    """
    return _column(annotations, "bbox", "iuf", (4,), "four numbers", where).astype(np.float64)


def integer_column(annotations: Sequence[dict[str, Any]], key: str, where: Callable[[int], str]) -> np.ndarray:
    """The value of ``key`` of every annotation as (N,) int64.

    Args:
        annotations: dictionaries of detectron2 or of a COCO file.
        key: the key to read.
        where: names the file, and image, of an annotation given by its position; for the error.

    Raises:
        ValueError: if the value is missing somewhere, or is not an integer.
    """
    return _column(annotations, key, "iu", (), "an integer", where).astype(np.int64)


def _column(
    annotations: Sequence[dict[str, Any]],
    key: str,
    kinds: str,
    row_shape: tuple[int, ...],
    expected: str,
    where: Callable[[int], str],
) -> np.ndarray:
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
        "Repair or remove these annotations."
    )


def _as_array(values: Any) -> np.ndarray:
    try:
        return np.array(values)
    except ValueError:  # rows of different lengths
        return np.array(None)
