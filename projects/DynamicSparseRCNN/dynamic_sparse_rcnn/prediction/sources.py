"""Where images come from: files, folders, glob patterns, arrays, video files and cameras."""

from __future__ import annotations

import glob
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.utils.file_io import PathManager

from ..data.images import IMAGE_ERRORS, read_image

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_DEFAULT_FPS = 25.0


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
        unreadable: file and reason of each image that could not be read so far.
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

    def _report(self, name: str, reason: str) -> None:
        self.unreadable.append((name, reason))
        logger.warning(f"{name} cannot be read and is left out ({len(self.unreadable)} so far): {reason}")


class ImageFiles(FrameSource):
    """Image files, read as in training: turned as their EXIF data say, grey in colour, 16 bits as 8."""

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__()
        self.files = list(files)

    def __iter__(self) -> Iterator[Frame]:
        for file in self.files:
            try:
                pixels = read_image(file, "RGB")
            except IMAGE_ERRORS as error:
                self._report(file, str(error) or type(error).__name__)
            else:
                yield Frame(file, pixels)

    @property
    def length(self) -> int:
        return len(self.files)


class Arrays(FrameSource):
    """Images in memory, see :func:`from_array`."""

    def __init__(self, arrays: Sequence[npt.NDArray]) -> None:
        super().__init__()
        self._frames = [from_array(array, f"array {number}") for number, array in enumerate(arrays)]

    def __iter__(self) -> Iterator[Frame]:
        yield from self._frames

    @property
    def length(self) -> int:
        return len(self._frames)


class Video(FrameSource):
    """The frames of a video file, or of a camera by its number.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, source: str | int) -> None:
        super().__init__()
        self.name = f"camera {source}" if isinstance(source, int) else source
        self.files = [] if isinstance(source, int) else [source]
        self._source = source
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            remedy = "is another program using it?" if isinstance(source, int) else "is it a video OpenCV can decode?"
            raise OSError(f"{self.name} cannot be opened: {remedy}")
        self.frames_per_second = self._capture.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS
        count = 0 if isinstance(source, int) else int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._length = count if count > 0 else None

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        if not self._capture.isOpened():  # once more from the start
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
        if self._length is not None and number < self._length:
            self._report(self.name, f"it ends after {number} of {self._length} frames")

    @property
    def length(self) -> int | None:
        return self._length


def open_source(source: str | Path | int | npt.NDArray | Sequence) -> FrameSource:
    """The images of anything that holds some.

    Args:
        source: the path of an image, a video or a folder; a glob pattern (``**`` goes down into folders); an address
            (``https://...``) of an image; the number of a camera; an array, see :func:`from_array`; or a list of
            image files or arrays.

    Raises:
        FileNotFoundError: there is no such file, or a folder or pattern has no image.
        OSError: a video or camera cannot be opened.
        ValueError: an array is no image.
    """
    if isinstance(source, np.ndarray):
        return Arrays([source])
    if isinstance(source, int):
        return Video(source)
    if isinstance(source, (str, Path)):
        return _open_path(os.path.expanduser(source))
    items = list(source)
    if all(isinstance(item, np.ndarray) for item in items):
        return Arrays(items)
    return ImageFiles([_existing(os.path.expanduser(item)) for item in items])


def _open_path(path: str) -> FrameSource:
    if os.path.isdir(path):
        return ImageFiles(_images_among([entry.path for entry in os.scandir(path) if entry.is_file()], path))
    if "://" not in path and glob.has_magic(path) and not os.path.exists(path):
        return ImageFiles(
            _images_among([file for file in glob.glob(path, recursive=True) if os.path.isfile(file)], path)
        )
    _existing(path)
    return Video(path) if path.lower().endswith(VIDEO_SUFFIXES) else ImageFiles([path])


def _images_among(files: list[str], place: str) -> list[str]:
    images = sorted(file for file in files if file.lower().endswith(IMAGE_SUFFIXES))
    if not images:
        raise FileNotFoundError(f"{place} has no image ({', '.join(IMAGE_SUFFIXES)}) among its {len(files)} files")
    if len(images) < len(files):
        logger.warning(f"{place}: {len(files) - len(images)} of {len(files)} files are no images and are left out")
    return images


def _existing(path: str) -> str:
    if "://" not in path and not PathManager.exists(path):
        raise FileNotFoundError(f"There is no file or folder {path}")
    return path


def from_array(array: npt.NDArray, name: str) -> Frame:
    """An image in memory.

    Args:
        array: (H, W, 3) BGR, as ``cv2.imread`` gives it and detectron2's ``DefaultPredictor`` takes it; or BGRA, or
            grey (H, W) or (H, W, 1). uint8, or uint16, which is divided by 256.
        name: of the frame.

    Raises:
        ValueError: it has another shape or type, or no pixel.
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    usual = array.ndim in (2, 3) and channels in (1, 3, 4) and array.dtype in (np.uint8, np.uint16)
    if not usual or not array.size:
        raise ValueError(
            f"{name} must be (H,W,3) BGR, (H,W,4) BGRA or grey (H,W), of uint8 or uint16, "
            f"got {array.shape} {array.dtype}"
        )
    if array.dtype == np.uint16:
        array = array >> 8
    pixels = array.astype(np.uint8).reshape(*array.shape[:2], channels)
    rgb = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels[..., 2::-1]
    return Frame(name, np.ascontiguousarray(rgb))
