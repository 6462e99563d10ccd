"""From a record to a network input, with the augmentation that DETR introduced and Sparse R-CNN uses."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation, check_image_size, filter_empty_instances
from detectron2.structures import Boxes, BoxMode, Instances

from .image_cache import ImageCache
from .images import IMAGE_ERRORS, read_image
from .pipelines import AlbumentationsPipeline
from .records import Record

logger = logging.getLogger(__name__)

#: Short sides, in pixels, to one of which half of the images are resized before they are cropped.
_SIZES_BEFORE_CROP = [400, 500, 600]
#: Limit of the long side before the crop, in units of ``INPUT.MAX_SIZE_TRAIN``. Only images about 9 times as long as
#: wide reach it; without it, they would take gigabytes.
_MAX_SIZE_BEFORE_CROP = 4


@dataclass(frozen=True)
class Resize:
    """How images are resized for the network.

    Attributes:
        short_side: the smallest target of the short side, in pixels.
        max_size: the limit of the long side, in pixels.
    """

    short_side: int
    max_size: int

    @classmethod
    def of(cls, augmentations: Sequence[T.Augmentation]) -> Resize | None:
        """The last unconditional resize among augmentations; None without one."""
        resizes = [a for a in augmentations if isinstance(a, T.ResizeShortestEdge) and min(a.short_edge_length)]
        return cls(min(resizes[-1].short_edge_length), resizes[-1].max_size) if resizes else None

    def scale(self, width: int, height: int) -> float:
        """The factor by which an image of this size is enlarged."""
        return max(self._shape(width, height)) / max(width, height)

    def _shape(self, width: int, height: int) -> tuple[int, int]:
        shape: tuple[int, int] = T.ResizeShortestEdge.get_output_shape(height, width, self.short_side, self.max_size)
        return shape

    def problem(self, width: int, height: int) -> str:
        """Why an image of this size cannot be resized; the empty string if it can."""
        if min(self._shape(width, height)) > 0:
            return ""
        return (
            f"is {width}x{height}: with its long side resized to {self.max_size} pixels, nothing is left of the short "
            "side. Cut it into pieces, or remove it"
        )


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """detectron2's resize and flip; with ``INPUT.CROP.ENABLED`` half of the images are cropped before that.

    The crop (type and size from ``INPUT.CROP``) is taken from the image resized to a short side of 400,
    500 or 600 pixels, and a long side of at most 4 ``INPUT.MAX_SIZE_TRAIN``. The pipeline of ``INPUT.ALBUMENTATIONS``
    goes before all of this; the changes of color of ``INPUT.COLOR_JITTER`` come last, where images are small.

    Raises:
        FileNotFoundError, ImportError: see :class:`AlbumentationsPipeline`.
        ValueError: see there, or ``INPUT.COLOR_JITTER`` is out of range, or set for images that are not RGB.
    """
    augmentations: list[T.Augmentation] = build_augmentation(cfg, is_train)
    if not is_train:
        return augmentations
    if cfg.INPUT.CROP.ENABLED:
        max_size = _MAX_SIZE_BEFORE_CROP * cfg.INPUT.MAX_SIZE_TRAIN
        crop = T.AugmentationList(
            [
                T.ResizeShortestEdge(_SIZES_BEFORE_CROP, max_size, sample_style="choice"),
                T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE),
            ]
        )
        augmentations.insert(0, T.RandomApply(crop, prob=0.5))
    if cfg.INPUT.ALBUMENTATIONS:
        augmentations.insert(0, AlbumentationsPipeline(cfg.INPUT.ALBUMENTATIONS, cfg.INPUT.FORMAT))
    if jitter := cfg.INPUT.COLOR_JITTER:
        if not 0 < jitter < 1:
            raise ValueError(f"INPUT.COLOR_JITTER is {jitter}: give a number from 0 (no change of colors) to below 1")
        if cfg.INPUT.FORMAT != "RGB":  # saturation weighs the channels
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}: INPUT.COLOR_JITTER needs RGB")
        changes = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
        augmentations += [change(1 - jitter, 1 + jitter) for change in changes]
    return augmentations


class DetectionMapper(DatasetMapper):
    """detectron2's ``DatasetMapper`` for boxes, with :func:`build_augmentations`.

    Augmentations see the boxes too, and may lose some (those of a :class:`AlbumentationsPipeline`, say). Boxes are
    clipped to the image; those that nothing is left of are dropped. Evaluations get them too, where an image has
    annotations: their losses need them.

    In training an image that can no longer be used is replaced by another one, with a warning: data that fail after
    hours end no run.
    """

    @configurable
    def __init__(
        self, *, keep_crowd: bool, spares: Sequence[Record] = (), cache: ImageCache | None = None, **arguments: Any
    ) -> None:
        """
        Args:
            keep_crowd: whether ``instances`` has crowd regions too, told apart by the bool field ``gt_is_crowd``.
            spares: records of images that replace one that cannot be used.
            cache: keeps images in memory, shrunk; None: each is read again every time.
            arguments: those of ``DatasetMapper``.
        """
        super().__init__(**arguments)
        self.keep_crowd = keep_crowd
        self.spares = list(spares)
        self.cache = cache
        self._resize = Resize.of(self.augmentations.augs)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        return arguments | {
            "augmentations": build_augmentations(cfg, is_train),
            "keep_crowd": cfg.MODEL.SparseRCNN.IGNORE_CROWD,
            "cache": _build_cache(cfg) if is_train else None,
        }

    def __call__(self, dataset_dict: Record) -> Record:
        """Maps one of detectron2's records to an input of the model.

        Raises:
            OSError: the image cannot be used, and (in training) neither can any other; names the file.
        """
        record, image = self._read(dataset_dict)
        mapped = {key: value for key, value in record.items() if key != "annotations"}
        annotations = [a for a in record.get("annotations", ()) if self.keep_crowd or not a.get("iscrowd", 0)]
        augmented = T.AugInput(image, boxes=_boxes_in_image(annotations, record, image))
        self.augmentations(augmented)
        mapped["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if self.is_train or "annotations" in record:
            mapped["instances"] = self._instances(annotations, augmented)
        return mapped

    def _read(self, dataset_dict: Record) -> tuple[Record, npt.NDArray[np.uint8]]:
        """The record and its image, or in training those of a spare."""
        for candidate in itertools.chain([dataset_dict], self._shuffled_spares()):
            record = dict(candidate)
            try:
                image = self._image(record)
                problem = self._resize.problem(*image.shape[1::-1]) if self._resize else ""
            except IMAGE_ERRORS as error:
                problem = f"cannot be used: {error}"
            if not problem:
                return record, image
            problem = f"{record['file_name']} {problem}"
            logger.warning("%s", problem)
        raise OSError(f"{problem}. Replace this image, or remove it from the annotations.")

    def _image(self, record: Record) -> npt.NDArray[np.uint8]:
        """(H, W, 3) the image, perhaps shrunk; the record gets its own size."""

        def read() -> npt.NDArray[np.uint8]:
            image = read_image(record["file_name"], self.image_format)
            check_image_size(record, image)
            return image

        if self.cache is None:
            return read()
        image, record["height"], record["width"] = self.cache.get(record["file_name"], read)
        return image

    def _shuffled_spares(self) -> Iterator[Record]:
        if self.is_train:
            yield from random.sample(self.spares, len(self.spares))

    def _instances(self, annotations: list[Record], augmented: T.AugInput) -> Instances:
        instances = Instances(augmented.image.shape[:2])
        instances.gt_boxes = Boxes(torch.as_tensor(augmented.boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_boxes.clip(instances.image_size)
        instances.gt_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        if self.keep_crowd:
            instances.gt_is_crowd = torch.tensor([bool(a.get("iscrowd", 0)) for a in annotations], dtype=torch.bool)
        return filter_empty_instances(instances)


def _build_cache(cfg: CfgNode) -> ImageCache | None:
    """Images of twice the largest training size: enough for a resize that is as good as from the file."""
    crop_sides = _SIZES_BEFORE_CROP if cfg.INPUT.CROP.ENABLED else []
    sides = [*(2 * side for side in cfg.INPUT.MIN_SIZE_TRAIN), *crop_sides]
    return ImageCache(max(sides), cfg.DATALOADER.CACHE_MEGABYTES << 20) if cfg.DATALOADER.CACHE_MEGABYTES else None


def _boxes_in_image(annotations: list[Record], record: Record, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(N, 4) float32 absolute xyxy pixels, clipped to the image: augmentations may count on that.

    Args:
        annotations: of the image at its own size.
        record: has that size.
        image: (H, W, 3), perhaps shrunk.
    """
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    height, width = image.shape[:2]
    scale = np.array([width / record["width"], height / record["height"]] * 2)
    in_image = (np.array(boxes, dtype=np.float64).reshape(-1, 4) * scale).clip(0, [width, height, width, height])
    return in_image.astype(np.float32)
