"""From a data set's dict to a network input: the augmentation that DETR introduced and Sparse R-CNN uses."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation

#: Short sides, in pixels, to one of which half of the images are resized before they are cropped.
_SIZES_BEFORE_CROP = [400, 500, 600]


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """detectron2's resize and flip; with ``INPUT.CROP.ENABLED`` half of the images are cropped before that.

    The crop (type and size from ``INPUT.CROP``) is taken from the image resized to a short side of 400,
    500 or 600 pixels.
    """
    augmentations = build_augmentation(cfg, is_train)
    if is_train and cfg.INPUT.CROP.ENABLED:
        crop = T.AugmentationList(
            [
                T.ResizeShortestEdge(_SIZES_BEFORE_CROP, sample_style="choice"),
                T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE),
            ]
        )
        augmentations.insert(0, T.RandomApply(crop, prob=0.5))
    return augmentations


class DetectionMapper(DatasetMapper):
    """detectron2's ``DatasetMapper`` with :func:`build_augmentations`."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        return arguments | {"augmentations": build_augmentations(cfg, is_train)}
