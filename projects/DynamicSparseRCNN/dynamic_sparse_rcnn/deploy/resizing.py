"""What images are resized to before they reach an exported detector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T

from .metadata import ExportMetadata


class ResizeInside(T.Augmentation):
    """Resizes an image to the largest that a box holds, keeping its proportions."""

    def __init__(self, height: int, width: int) -> None:
        """Args: of the box, in pixels."""
        super().__init__()
        self.height = height
        self.width = width

    def get_transform(self, image: npt.NDArray[np.uint8]) -> T.Transform:
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
