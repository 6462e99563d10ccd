"""Where images come from: files, folders, glob patterns, images in memory, video files and cameras."""

from __future__ import annotations

import glob
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import cv2
import numpy as np
import numpy.typing as npt
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..data.images import IMAGE_ERRORS, IMAGE_SUFFIXES, UNBOUNDED_MODES, holds_several, read_image, to_pixels

logger = logging.getLogger(__name__)

#: An image in memory, see :func:`to_frame`.
InMemory: TypeAlias = "npt.NDArray[Any] | torch.Tensor | Image.Image"

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
#: How URLs of streams start, which have no end: those of network cameras.
STREAM_PREFIXES = ("rtsp://", "rtsps://", "rtmp://", "udp://")
_DEFAULT_FPS, _MOST_FPS = 25.0, 1000.0


@dataclass(frozen=True)
class Frame:
    """One image.

    Attributes:
        name: its file, or the video's with the frame's number.
        pixels: (H, W, 3) uint8, RGB.
    """

    name: str
    pixels: npt.NDArray[np.uint8]


class FrameSource(ABC):
    """Images one after the other. What cannot be read is warned about, and counted in ``unreadable``.

    Attributes:
        unreadable: name and reason of each image or video that could not be read so far.
        frames_per_second: of a video; None for images.
        files: that it reads.
    """

    def __init__(self) -> None:
        self.unreadable: list[tuple[str, str]] = []
        self.frames_per_second: float | None = None
        self.files: list[str] = []

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    @property
    @abstractmethod
    def length(self) -> int | None:
        """How many images there should be; None where that is not known."""

    def report(self, name: str, reason: str) -> None:
        """Counts an image or video that cannot be read, or not be used, and warns of it."""
        self.unreadable.append((name, reason))
        logger.warning(f"{name} cannot be read and is skipped ({len(self.unreadable)} so far): {reason}")


class Images(FrameSource):
    """Image files, read as in training (turned as their EXIF data say, gray in color, 16 bits as 8), and images in
    memory. Of files with several images, such as an animated GIF, the first is read, and that is warned of once."""

    def __init__(self, items: Sequence[str | InMemory]) -> None:
        super().__init__()
        self._items = [x if isinstance(x, str) else to_frame(x, f"image {i}") for i, x in enumerate(items)]
        self.files = [item for item in self._items if isinstance(item, str)]
        self._told_of_several = False

    def __iter__(self) -> Iterator[Frame]:
        for item in self._items:
            if isinstance(item, Frame):
                yield item
                continue
            try:
                frame = Frame(item, read_image(item, "RGB"))
                self._tell_of_several(item)
            except IMAGE_ERRORS as error:
                self.report(item, str(error) or type(error).__name__)
            else:
                yield frame

    @property
    def length(self) -> int:
        return len(self._items)

    def _tell_of_several(self, file: str) -> None:
        if self._told_of_several:
            return
        with PathManager.open(file, "rb") as opened, Image.open(opened) as image:
            if holds_several(image):
                self._told_of_several = True
                logger.warning(
                    f"{file} holds several images (pages, or frames of an animation): only the first is read, here and "
                    "in other such files. Save pages as files of their own, and an animation as a video"
                )


class Video(FrameSource):
    """The frames of a video file, or of a camera: by its number, or by the URL of its stream. A video that ends early,
    or a camera that stops, is warned of.

    (supervision's readers know no cameras and do not tell whether a video ended early.)

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, source: str | int) -> None:
        super().__init__()
        live = isinstance(source, int) or _is_stream(source)
        self.name = f"camera {source}" if isinstance(source, int) else _stream_name(source) if live else source
        self.files = [] if live else [str(source)]
        self._source = source
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            doubt = "is it there, and is another program using it?" if live else "is it a video OpenCV can decode?"
            raise OSError(f"{self.name} cannot be opened: {doubt}")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_second = rate if math.isfinite(rate) and 0 < rate <= _MOST_FPS else _DEFAULT_FPS
        count = 0 if live else int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._length = count if count > 0 else None
        if not live:
            self._capture.release()  # a process can have few files open at once

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        if not self._capture.isOpened():
            self._capture.open(self._source)
        try:
            while True:
                found, pixels = self._capture.read()
                if not found:
                    break
                yield Frame(f"{self.name}:{number:06d}", cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8))
                number += 1
        finally:
            self._capture.release()
        if number == 0:
            self.report(self.name, "it has no frame that can be decoded")
        elif not self.files:
            logger.warning(
                f"{self.name} stopped giving images after {number}: is it still connected? Those until then are used"
            )
        elif self._length is None:
            logger.info(f"{self.name} ended after {number} frames")
        elif number < self._length:
            logger.warning(
                f"{self.name} ends after {number} of the {self._length} frames that its header states: it may have "
                "been cut off. The frames that are there are used"
            )

    @property
    def length(self) -> int | None:
        return self._length


def open_source(source: str | Path | int | InMemory | Sequence[str | Path | InMemory]) -> FrameSource:
    """The images of anything that holds some.

    Args:
        source: the path of an image, a video or a folder; a glob pattern (``**`` goes down into folders); a URL
            (``https://...``) of an image; the number of a camera, or the URL of its stream (``rtsp://...``); an image
            in memory, see :func:`to_frame`; or a list of image files and images in memory.

    Raises:
        FileNotFoundError: there is no such file, or a folder or pattern has no image.
        OSError: a video or camera cannot be opened.
        TypeError: it is none of these.
        ValueError: an array or tensor is no image.
    """
    if isinstance(source, int) and not isinstance(source, bool):
        return Video(source)
    if isinstance(source, (str, Path)):
        return _open_path(os.path.expanduser(source))
    items: list[Any] = list(source) if isinstance(source, (list, tuple)) else [source]
    return Images([_existing(os.path.expanduser(x)) if isinstance(x, (str, Path)) else x for x in items])


def _open_path(path: str) -> FrameSource:
    if os.path.isdir(path):
        return Images(_images_among([entry.path for entry in os.scandir(path) if entry.is_file()], path))
    if "://" not in path and glob.has_magic(path) and not os.path.exists(path):
        return Images(_images_among([file for file in glob.glob(path, recursive=True) if os.path.isfile(file)], path))
    _existing(path)
    return Video(path) if _is_stream(path) or path.lower().endswith(VIDEO_SUFFIXES) else Images([path])


def _is_stream(source: str) -> bool:
    return source.lower().startswith(STREAM_PREFIXES)


def _stream_name(url: str) -> str:
    """The URL of a stream without what may be a password: the name goes into files and the log."""
    parts = urlsplit(url)
    path = "/".join(segment for segment in parts.path.split("/") if "=" not in segment)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"


def _images_among(files: list[str], place: str) -> list[str]:
    images = sorted(file for file in files if file.lower().endswith(IMAGE_SUFFIXES))
    if not images:
        raise FileNotFoundError(f"{place} contains no image ({', '.join(IMAGE_SUFFIXES)}) among its {len(files)} files")
    if len(images) < len(files):
        logger.warning(f"{place}: {len(files) - len(images)} of {len(files)} files are not images and are skipped")
    return images


def _existing(path: str) -> str:
    if "://" not in path and not PathManager.exists(path):
        raise FileNotFoundError(f"There is no file or folder {path}")
    return path


def to_frame(image: InMemory, name: str) -> Frame:
    """An image in memory.

    Args:
        image: as its library has it. A NumPy array: (H, W, 3) BGR, as ``cv2.imread`` gives it and detectron2's
            ``DefaultPredictor`` takes it; or BGRA, or gray (H, W) or (H, W, 1); uint8, or uint16, which is divided by
            256. A PyTorch tensor: (3, H, W) RGB or (1, H, W) gray; uint8, or floating-point in [0, 1]. A PIL image of
            any mode but F, turned as its EXIF data say.
        name: of the frame.

    Raises:
        TypeError: it is none of these.
        ValueError: it has another shape or type, or no pixel.
    """
    if isinstance(image, np.ndarray):
        return Frame(name, _array_to_rgb(image, name))
    if isinstance(image, torch.Tensor):
        return Frame(name, _tensor_to_rgb(image, name))
    if isinstance(image, Image.Image):
        return Frame(name, _pil_to_rgb(image, name))
    raise TypeError(
        f"{name} is a {type(image).__name__}: give the path or URL of an image, a NumPy array (H,W,3) BGR, a PyTorch "
        "tensor (3,H,W) RGB or a PIL image"
    )


def _array_to_rgb(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    channels = array.shape[2] if array.ndim == 3 else 1
    usual = array.ndim in (2, 3) and channels in (1, 3, 4) and array.dtype in (np.uint8, np.uint16)
    if not usual or not array.size:
        raise ValueError(
            f"{name} must be (H,W,3) BGR, (H,W,4) BGRA or gray (H,W), of uint8 or uint16, "
            f"got {array.shape} {array.dtype}"
        )
    if array.dtype == np.uint16:
        array = array >> 8
    pixels = array.astype(np.uint8).reshape(*array.shape[:2], channels)
    rgb = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels[..., 2::-1]
    return np.ascontiguousarray(rgb)


def _tensor_to_rgb(tensor: torch.Tensor, name: str) -> npt.NDArray[np.uint8]:
    tensor = tensor.detach().cpu()
    usual = tensor.ndim == 3 and tensor.shape[0] in (1, 3) and tensor.numel() > 0
    if usual and tensor.is_floating_point() and tensor.min() >= 0 and tensor.max() <= 1:
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    if not usual or tensor.dtype != torch.uint8:
        raise ValueError(
            f"{name} must be a tensor (3,H,W) RGB or (1,H,W) gray, of uint8 or of floating-point values in [0, 1], "
            f"got {tuple(tensor.shape)} {tensor.dtype}"
        )
    return np.ascontiguousarray(tensor.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _pil_to_rgb(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    if image.mode in UNBOUNDED_MODES or not (image.width and image.height):
        raise ValueError(f"{name} is a PIL image of mode {image.mode} and size {image.size}: convert it to RGB")
    return to_pixels(image, "RGB")
