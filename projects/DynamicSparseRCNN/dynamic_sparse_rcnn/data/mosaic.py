"""Mosaics: four training images in one (YOLOv4, arXiv 2004.10934, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T

#: Number of images in a mosaic.
IMAGES_OF_A_MOSAIC = 4
# Range of the point where they meet, in units of the mosaic's sides.
_CENTER = (0.35, 0.65)
# Range of their sizes; 1: as large as possible without exceeding the mosaic's sides.
_SCALE = (0.5, 1.0)
# An object's box is kept if at least this share of its area is left, and a pixel of each side.
_MIN_SHARE = 0.3
_GRAY = 114


def make_mosaic(
    images: Sequence[npt.NDArray[np.uint8]],
    boxes: Sequence[npt.NDArray[np.float32]],
    are_crowd: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Lays four images around a random point, each with a corner at it, and cuts off what exceeds the first one's size.

    Random numbers are NumPy's.

    Args:
        images: four of (H_i, W_i, 3) uint8: above left, above right, below left, below right. The mosaic has the size
            of the first.
        boxes: of each image, (N_i, 4) float32 absolute xyxy pixels.
        are_crowd: (sum of N_i,) bool, which boxes are of crowd regions. Those are kept, however little of them is left.

    Returns:
        The mosaic, (H_0, W_0, 3) uint8, gray where no image lies, and its boxes, (sum of N_i, 4) float32 absolute xyxy
        pixels in the order given. Boxes of objects less than 0.3 of which are left are (0, 0, 0, 0).

    Raises:
        ValueError: there are not four images, or not as many arrays of boxes.
    """
    height, width = images[0].shape[:2]
    mosaic = np.full_like(images[0], _GRAY)
    x, y = (int(place * side) for place, side in zip(np.random.uniform(*_CENTER, size=2), (width, height), strict=True))
    placed = []
    for (above, left), image, image_boxes in zip(product((True, False), repeat=2), images, boxes, strict=True):
        resize = _random_resize(image, height, width)
        x0, y0 = x - resize.new_w * left, y - resize.new_h * above
        part = resize.apply_image(image)[max(-y0, 0) : height - y0, max(-x0, 0) : width - x0]
        mosaic[max(y0, 0) : y0 + resize.new_h, max(x0, 0) : x0 + resize.new_w] = part
        placed.append(resize.apply_box(image_boxes).reshape(-1, 4) + np.array([x0, y0, x0, y0]))
    return mosaic, _cut(np.concatenate(placed), are_crowd, height, width).astype(np.float32)


def _random_resize(image: npt.NDArray[np.uint8], height: int, width: int) -> T.ResizeTransform:
    h, w = image.shape[:2]
    scale = np.random.uniform(*_SCALE) * min(height / h, width / w)
    return T.ResizeTransform(h, w, max(round(h * scale), 1), max(round(w * scale), 1))


def _cut(
    boxes: npt.NDArray[np.float64], are_crowd: npt.NDArray[np.bool_], height: int, width: int
) -> npt.NDArray[np.float64]:
    cut = boxes.clip(0, [width, height, width, height])
    visible = (cut[:, 2:] - cut[:, :2] >= 1).all(1)
    kept = are_crowd | (visible & (_areas(cut) >= _MIN_SHARE * _areas(boxes)))
    return np.where(kept[:, None], cut, 0.0)


def _areas(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(1))
