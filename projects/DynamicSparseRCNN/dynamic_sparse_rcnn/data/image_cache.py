"""Decoded images in memory, for trainings on photographs that are far larger than the network's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt


class SizedImage(NamedTuple):
    """An image that is perhaps shrunk, (H, W, 3) uint8, and the height and width that it had."""

    pixels: npt.NDArray[np.uint8]
    height: int
    width: int


class ImageCache:
    """Shrinks images to what a training can use of them, and keeps as many as fit.

    Decoding a photograph of 12 megapixels takes a tenth of a second, most of a small detector's step. An image is
    shrunk whether or not it is kept, so that what a training sees does not depend on the size of the cache.
    """

    def __init__(self, short_side: int, max_bytes: int) -> None:
        """
        Args:
            short_side: that is left of larger images at least, in pixels.
            max_bytes: of all images that are kept.
        """
        self._short_side = short_side
        self._free_bytes = max_bytes
        self._images: dict[str, SizedImage] = {}

    def get(self, key: str, read: Callable[[], npt.NDArray[np.uint8]]) -> SizedImage:
        """An image, whose pixels must not be changed in place.

        Args:
            key: of the image.
            read: gives it at its own size, (H, W, 3) uint8; called if it is not kept.
        """
        if key in self._images:
            return self._images[key]
        image = read()
        sized = SizedImage(self._shrink(image), *image.shape[:2])
        if sized.pixels.nbytes <= self._free_bytes:
            self._free_bytes -= sized.pixels.nbytes
            self._images[key] = sized
        return sized

    def _shrink(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        # By a whole number, which keeps the aspect ratio.
        height, width = image.shape[:2]
        factor = min(height, width) // self._short_side
        if factor <= 1:
            return image
        size = round(width / factor), round(height / factor)
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
