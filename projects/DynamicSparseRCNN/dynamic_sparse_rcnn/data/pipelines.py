"""Augmentation pipelines of other libraries, as one of detectron2's augmentations."""

from __future__ import annotations

import logging
import os
from typing import Any, Protocol

import numpy as np
from detectron2.data import transforms as T
from detectron2.utils.logger import log_every_n_seconds


class Pipeline(Protocol):
    """What has to be known of a pipeline."""

    def __call__(self, image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            image: (H, W, 3) uint8, RGB.
            boxes: (N, 4) float32, absolute xyxy pixels within the image.

        Returns:
            The new image, (H', W', 3) uint8, and the (N, 4) boxes in it, in the same order; without area where
            one was lost.
        """


class PipelineAugmentation(T.Augmentation):
    """Runs a pipeline wherever detectron2 takes an ``Augmentation``; the input needs ``boxes`` too.

    If a pipeline that has worked fails at some image (a crop larger than the image, say), that image stays as it
    is, with a warning (at most one a minute, with their number): it is no reason to end a run.
    """

    def __init__(self, pipeline: Pipeline, image_format: str) -> None:
        """
        Args:
            pipeline: what to run.
            image_format: ``INPUT.FORMAT``, in which images come and go.

        Raises:
            ValueError: if the format is neither RGB nor BGR, which pipelines could not work on.
        """
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}: augmentation pipelines need RGB or BGR")
        self.pipeline = pipeline
        self.image_format = image_format
        self._has_worked = False
        self._failures = 0

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> T.Transform:
        """Runs the pipeline on (H, W, 3) uint8 and (N, 4) xyxy; what comes out is the transform's only result.

        Raises:
            ValueError: if the pipeline fails at its first image, or what comes out is not (H, W, 3) uint8.
        """
        try:
            new_image, new_boxes = self.pipeline(np.ascontiguousarray(self._swapped(image)), boxes)
            _check_image(new_image)
        except Exception as error:  # of whatever kind the library raises
            if not self._has_worked:
                raise ValueError(
                    f"{self.pipeline} fails at an image of {image.shape[1]} x {image.shape[0]}: "
                    f"{str(error).rstrip('.')}. Correct it; a crop may need a padding or a resizing before it."
                ) from error
            self._failures += 1
            log_every_n_seconds(
                logging.WARNING,
                f"{self.pipeline}: {self._failures} images stayed unaugmented in this process, the last, of "
                f"{image.shape[1]} x {image.shape[0]}: {error}",
                n=60,
            )
            return T.NoOpTransform()
        self._has_worked = True
        return _Result(self._swapped(new_image), new_boxes)

    def _swapped(self, image: np.ndarray) -> np.ndarray:
        return image[..., ::-1] if self.image_format == "BGR" else image


class _Result(T.Transform):
    """The transform of one image and its boxes into what a pipeline made of them."""

    def __init__(self, image: np.ndarray, boxes: np.ndarray) -> None:
        super().__init__()
        self.image = image
        self.boxes = boxes

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.image

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        return self.boxes

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError("a pipeline of another library moves its own boxes alone")


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{image.shape} {image.dtype}" if hasattr(image, "shape") else type(image).__name__
        raise ValueError(
            f"The augmentation pipeline gives images of {found}, needed are (H, W, 3) uint8: leave out what "
            "normalises or makes tensors, the detector does it."
        )


class AlbumentationsPipeline:
    """A pipeline that ``albumentations.save`` wrote; lost are boxes cropped away or too small for its ``bbox_params``.

    Its random numbers follow NumPy's, so that ``SEED`` decides them.
    """

    def __init__(self, file: str) -> None:
        """
        Args:
            file: path of the pipeline, ``*.json``, ``*.yaml`` or ``*.yml``.

        Raises:
            FileNotFoundError: if the file does not exist.
            ImportError: if Albumentations is not installed.
            ValueError: if the file holds no pipeline.
        """
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
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
        except Exception as error:  # of YAML, JSON, or a transform's own checks
            raise ValueError(
                f"{file} is no pipeline of Albumentations ({error}). Write it with albumentations.save(pipeline, "
                "'<file>.yaml', data_format='yaml')."
            ) from error
        self._compose = _with_boxes(albumentations, loaded)

    def __repr__(self) -> str:
        return f"AlbumentationsPipeline({self.file!r})"

    def __call__(self, image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Pipeline`."""
        self._compose.set_random_seed(int(np.random.randint(2**31)))
        present = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        result = self._compose(image=image, bboxes=boxes[present], index=present)
        moved = np.zeros_like(boxes)
        if len(result["index"]):
            moved[np.asarray(result["index"], dtype=np.int64)] = np.asarray(result["bboxes"])[:, :4]
        return result["image"], moved


def _with_boxes(albumentations: Any, loaded: Any) -> Any:
    """The pipeline with boxes in our form, and with its own rules for which of them are lost."""
    if not isinstance(loaded, albumentations.Compose):
        return albumentations.Compose([loaded], bbox_params=_bbox_params(albumentations, None))
    processor = loaded.processors.get("bboxes")
    params = _bbox_params(albumentations, processor.params if processor else None)
    return albumentations.Compose(loaded.transforms, bbox_params=params, p=loaded.p)


def _bbox_params(albumentations: Any, own: Any) -> Any:
    rules = ("min_area", "min_visibility", "min_width", "min_height", "max_accept_ratio")
    kept = {rule: getattr(own, rule) for rule in rules if hasattr(own, rule)} if own else {}
    return albumentations.BboxParams(format="pascal_voc", label_fields=["index"], clip=True, **kept)
