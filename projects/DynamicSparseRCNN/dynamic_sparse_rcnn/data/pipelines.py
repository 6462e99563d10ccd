"""Augmentation pipelines of Albumentations, as an augmentation of detectron2."""

from __future__ import annotations

import logging
import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T
from detectron2.utils.logger import log_every_n_seconds

Pixels: TypeAlias = npt.NDArray[np.uint8]
BoxArray: TypeAlias = npt.NDArray[np.float32]

# Side, in pixels, of the image that a pipeline is tried on: larger than what crops cut out.
_TRIAL_SIDE = 2048


class AlbumentationsPipeline(T.Augmentation):
    """Runs a pipeline written by ``albumentations.save`` as one of detectron2's augmentations.

    The input must have ``boxes``. Those that are cropped away, or too small for the pipeline's ``bbox_params``, have no
    area afterwards. The pipeline's random numbers follow from NumPy's, and so from ``SEED``.

    A pipeline is tried once, when it is loaded. If it fails on an image later (a crop larger than the image, say), the
    image is left as it is, and counted in a warning (at most one per minute): the run continues.
    """

    def __init__(self, file: str, image_format: str) -> None:
        """
        Args:
            file: path of the pipeline, ``*.json``, ``*.yaml`` or ``*.yml``.
            image_format: ``INPUT.FORMAT``, that of images in and out; pipelines see RGB.

        Raises:
            FileNotFoundError: if the file does not exist.
            ImportError: if Albumentations is not installed.
            ValueError: if the file does not hold a pipeline, the pipeline fails on a large image or returns something
                other than (H, W, 3) uint8, or the format is neither RGB nor BGR.
        """
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}: augmentation pipelines need RGB or BGR")
        self.file = file
        self.image_format = image_format
        self._compose = _load(file)
        self._failures = 0
        self._try()

    def get_transform(self, image: Pixels, boxes: BoxArray) -> T.Transform:
        """Runs the pipeline on an image (H, W, 3) uint8 and boxes (N, 4) xyxy; the transform returns its results."""
        seed = int(np.random.randint(2**31))
        try:
            new_image, new_boxes = self._run(np.ascontiguousarray(self._swapped(image)), boxes, seed)
        except Exception as error:  # the library may raise anything
            self._failures += 1
            log_every_n_seconds(
                logging.WARNING,
                f"{self.file}: {self._failures} images were not augmented in this process; the last, of "
                f"{image.shape[1]} x {image.shape[0]}: {error}",
                n=60,
            )
            return T.NoOpTransform()
        return _Result(self._swapped(new_image), new_boxes)

    def _try(self) -> None:
        """Runs the pipeline on noise, with one box."""
        image = np.random.default_rng(0).integers(0, 256, (_TRIAL_SIDE, _TRIAL_SIDE, 3), dtype=np.uint8)
        box = _TRIAL_SIDE * np.array([[0.25, 0.25, 0.75, 0.75]], dtype=np.float32)
        try:
            self._run(image, box, seed=0)
        except Exception as error:
            raise ValueError(
                f"{self.file} fails on an image of {_TRIAL_SIDE} x {_TRIAL_SIDE}: {str(error).rstrip('.')}. Correct "
                "it; a crop may need padding or resizing before it."
            ) from error

    def _run(self, image: Pixels, boxes: BoxArray, seed: int) -> tuple[Pixels, BoxArray]:
        """The new image and the boxes in it, in their order."""
        self._compose.set_random_seed(seed)
        present = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        result = self._compose(image=image, bboxes=boxes[present], index=present)
        _check_image(result["image"])
        moved = np.zeros_like(boxes)
        if len(result["index"]):
            moved[np.asarray(result["index"], dtype=np.int64)] = np.asarray(result["bboxes"])[:, :4]
        return result["image"], moved

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


def _load(file: str) -> Any:
    """The pipeline, for absolute xyxy boxes, with its own rules for which of them are lost."""
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
    try:
        loaded = albumentations.load(file, data_format="json" if file.endswith(".json") else "yaml")
    except Exception as error:  # from YAML, JSON, or a transform's own checks
        raise ValueError(
            f"{file} is not an Albumentations pipeline ({error}). Write it with albumentations.save(pipeline, "
            "'<file>.yaml', data_format='yaml')."
        ) from error
    if not isinstance(loaded, albumentations.Compose):
        loaded = albumentations.Compose([loaded])
    processor = loaded.processors.get("bboxes")
    rules = ("min_area", "min_visibility", "min_width", "min_height", "max_accept_ratio")
    kept = (
        {rule: getattr(processor.params, rule) for rule in rules if hasattr(processor.params, rule)}
        if processor
        else {}
    )
    params = albumentations.BboxParams(format="pascal_voc", label_fields=["index"], clip=True, **kept)
    return albumentations.Compose(loaded.transforms, bbox_params=params, p=loaded.p)
