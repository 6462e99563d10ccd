"""From images of any size to what an exported detector takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T

from .exportable import INPUT_NAMES
from .metadata import ExportMetadata

Image: TypeAlias = npt.NDArray[np.uint8]
#: The inputs of an exported detector, by name.
Feed: TypeAlias = dict[str, npt.NDArray[np.generic]]


class ResizeInside(T.Augmentation):
    """Resizes an image to the largest that a box holds, keeping its proportions."""

    def __init__(self, height: int, width: int) -> None:
        """Args: of the box, in pixels."""
        super().__init__()
        self.height = height
        self.width = width

    def get_transform(self, image: Image) -> T.Transform:
        """The transform for an (H, W, C) image."""
        height, width = image.shape[:2]
        scale = min(self.height / height, self.width / width)
        new_size = (min(self.height, round(scale * height)), min(self.width, round(scale * width)))
        return T.ResizeTransform(height, width, *(max(1, side) for side in new_size))


def find_resize(augmentations: Sequence[T.Augmentation]) -> tuple[int, int]:
    """What a test pipeline resizes images to: shorter side and most pixels of the longer one; 0: it does not.

    Raises:
        ValueError: it does something else, which an exported file could not say.
    """
    if not augmentations:
        return 0, 0
    first = augmentations[0]
    if len(augmentations) > 1 or not isinstance(first, T.ResizeShortestEdge) or len(set(first.short_edge_length)) > 1:
        raise ValueError(f"the test pipeline {list(augmentations)} cannot be exported: only one ResizeShortestEdge can")
    return int(first.short_edge_length[0]), int(first.max_size)


def make_augmentations(metadata: ExportMetadata) -> T.AugmentationList:
    """What images go through before the exported detector gets them."""
    if metadata.size is not None:
        return T.AugmentationList([ResizeInside(*metadata.size)])
    return T.AugmentationList([T.ResizeShortestEdge(metadata.short_edge, metadata.max_size)])


def prepare(images: Sequence[Image], original_sizes: Sequence[tuple[int, ...]], metadata: ExportMetadata) -> Feed:
    """Resizes images and pads them to a batch.

    Args:
        images: (3, H, W) uint8 each, in the file's channel order.
        original_sizes: height and width that the detections of each shall have.
        metadata: of the file.

    Returns:
        The three inputs of :class:`.ExportableDetector`, by name.
    """
    augmentations = make_augmentations(metadata)
    resized = []
    for image in images:
        augmented = T.AugInput(image.transpose(1, 2, 0))
        augmentations(augmented)
        resized.append(augmented.image.transpose(2, 0, 1))
    image_sizes = np.array([x.shape[1:] for x in resized], np.int64)
    unit = metadata.divisibility
    height, width = metadata.size or -(-image_sizes.max(0) // unit) * unit
    batch = np.zeros((len(images), len(images[0]), height, width), np.uint8)
    for row, image in zip(batch, resized, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return dict(zip(INPUT_NAMES, (batch, image_sizes, np.array(original_sizes, np.int64)), strict=True))
