"""Augmentation pipelines of other libraries, as an augmentation of detectron2."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T
from detectron2.utils.logger import log_every_n_seconds

Pixels: TypeAlias = npt.NDArray[np.uint8]
BoxArray: TypeAlias = npt.NDArray[np.float32]
#: Maps an image, (H, W, 3) uint8 RGB, and (N, 4) boxes, absolute xyxy pixels, to the new image and the boxes in it, in
#: the same order; lost boxes have no area.
Pipeline: TypeAlias = Callable[[Pixels, BoxArray], tuple[Pixels, BoxArray]]


class PipelineAugmentation(T.Augmentation):
    """Runs a pipeline as one of detectron2's augmentations; the input must have ``boxes``.

    If a pipeline that has worked before fails on an image (a crop larger than the image, say), the image is left as it
    is, and counted in a warning (at most one per minute): the run continues.
    """

    def __init__(self, pipeline: Pipeline, image_format: str) -> None:
        """
        Args:
            pipeline: what to run.
            image_format: ``INPUT.FORMAT``, that of images in and out.

        Raises:
            ValueError: if the format is neither RGB nor BGR.
        """
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}: augmentation pipelines need RGB or BGR")
        self.pipeline = pipeline
        self.image_format = image_format
        self._has_worked = False
        self._failures = 0

    def get_transform(self, image: Pixels, boxes: BoxArray) -> T.Transform:
        """Runs the pipeline on an image (H, W, 3) uint8 and boxes (N, 4) xyxy; the transform returns its results.

        Raises:
            ValueError: if the pipeline fails on its first image, or returns something other than (H, W, 3) uint8.
        """
        try:
            new_image, new_boxes = self.pipeline(np.ascontiguousarray(self._swapped(image)), boxes)
            _check_image(new_image)
        except Exception as error:  # the library may raise anything
            if not self._has_worked:
                raise ValueError(
                    f"{self.pipeline} fails on an image of {image.shape[1]} x {image.shape[0]}: "
                    f"{str(error).rstrip('.')}. Correct it; a crop may need padding or resizing before it."
                ) from error
            self._failures += 1
            log_every_n_seconds(
                logging.WARNING,
                f"{self.pipeline}: {self._failures} images were not augmented in this process; the last, of "
                f"{image.shape[1]} x {image.shape[0]}: {error}",
                n=60,
            )
            return T.NoOpTransform()
        self._has_worked = True
        return _Result(self._swapped(new_image), new_boxes)

    def _swapped(self, image: Pixels) -> Pixels:
        return image[..., ::-1] if self.image_format == "BGR" else image


class _Result(T.Transform):
    """Maps one image and its boxes to what a pipeline made of them."""

    def __init__(self, image: Pixels, boxes: BoxArray) -> None:
        super().__init__()
        self.image = image
        self.boxes = boxes

    def apply_image(self, img: Pixels) -> Pixels:
        return self.image

    def apply_box(self, box: BoxArray) -> BoxArray:
        return self.boxes

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError("a pipeline only maps the boxes that it was given")


def _check_image(image: object) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f"The augmentation pipeline returns images of {found} instead of (H, W, 3) uint8: remove normalization and "
            "conversion to tensors, which the detector does."
        )


class AlbumentationsPipeline:
    """A pipeline written by ``albumentations.save``. It loses boxes cropped away or too small for its ``bbox_params``.

    Its random numbers follow from NumPy's, and so from ``SEED``.
    """

    def __init__(self, file: str) -> None:
        """
        Args:
            file: path of the pipeline, ``*.json``, ``*.yaml`` or ``*.yml``.

        Raises:
            FileNotFoundError: if the file does not exist.
            ImportError: if Albumentations is not installed.
            ValueError: if the file does not hold a pipeline.
        """
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it looks for a newer version online
        try:
            import albumentations
        except ImportError as error:
            raise ImportError(
                f"INPUT.ALBUMENTATIONS is {file!r}, but Albumentations cannot be imported ({error}): "
                "pip install '.[albumentations]'"
            ) from error
        if not os.path.isfile(file):
            raise FileNotFoundError(f"INPUT.ALBUMENTATIONS names {file}, which does not exist. Correct the path.")
        self.file = file
        try:
            loaded = albumentations.load(file, data_format="json" if file.endswith(".json") else "yaml")
        except Exception as error:  # from YAML, JSON, or a transform's own checks
            raise ValueError(
                f"{file} is not an Albumentations pipeline ({error}). Write it with albumentations.save(pipeline, "
                "'<file>.yaml', data_format='yaml')."
            ) from error
        self._compose = _with_boxes(albumentations, loaded)

    def __repr__(self) -> str:
        return f"AlbumentationsPipeline({self.file!r})"

    def __call__(self, image: Pixels, boxes: BoxArray) -> tuple[Pixels, BoxArray]:
        """See :data:`Pipeline`."""
        self._compose.set_random_seed(int(np.random.randint(2**31)))
        present = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        result = self._compose(image=image, bboxes=boxes[present], index=present)
        moved = np.zeros_like(boxes)
        if len(result["index"]):
            moved[np.asarray(result["index"], dtype=np.int64)] = np.asarray(result["bboxes"])[:, :4]
        return result["image"], moved


def _with_boxes(albumentations: Any, loaded: Any) -> Any:
    """The pipeline for absolute xyxy boxes, with its own rules for which of them are lost."""
    if not isinstance(loaded, albumentations.Compose):
        return albumentations.Compose([loaded], bbox_params=_bbox_params(albumentations, None))
    processor = loaded.processors.get("bboxes")
    params = _bbox_params(albumentations, processor.params if processor else None)
    return albumentations.Compose(loaded.transforms, bbox_params=params, p=loaded.p)


def _bbox_params(albumentations: Any, own: Any) -> Any:
    rules = ("min_area", "min_visibility", "min_width", "min_height", "max_accept_ratio")
    kept = {rule: getattr(own, rule) for rule in rules if hasattr(own, rule)} if own else {}
    return albumentations.BboxParams(format="pascal_voc", label_fields=["index"], clip=True, **kept)
