"""Drawn predictions as image files, and as videos where they are the frames of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

# Rates that mp4 cannot express to the third decimal are rounded to fewer.
_DECIMALS = (3, 1, 0)


def picture_names(sources: Sequence[str], suffix: str) -> dict[str, str]:
    """The names of the pictures of images or videos: as their files are called; a second of a name gets a number.

    Args:
        sources: files, or ``camera N``.
        suffix: of the pictures.
    """
    used: set[str] = set()
    names: dict[str, str] = {}
    for source in sources:
        stem, number = Path(source).stem, 1
        name = f"{stem}{suffix}"
        while name in used:
            number += 1
            name = f"{stem}_{number}{suffix}"
        used.add(name)
        names[source] = name
    return names


class VideoWriter:
    """Writes an mp4, which takes its place when it is closed. The first frame decides the size.

    Closing it raises OSError if frames are lost.

    (supervision's ``VideoSink`` has to know the size before, and refuses rates that mp4 cannot express.)
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        """
        Args:
            path: of the video, in a folder that exists.
            frames_per_second: rounded where mp4 cannot express it.
        """
        self._path = path
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._rate = frames_per_second
        self._writer: cv2.VideoWriter | None = None
        self._frames = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        # OpenCV says nothing of a disk that is full.
        is_whole = cv2.VideoCapture(str(self._partial)).get(cv2.CAP_PROP_FRAME_COUNT) >= self._frames
        self._partial.replace(self._path)
        if not is_whole and error is None:
            raise OSError(
                f"{self._path} lacks frames: is its disk full? Free some space and start again; --no-draw leaves "
                "pictures out"
            )

    def write(self, picture: npt.NDArray[np.uint8]) -> None:
        """Adds a frame, (H, W, 3) uint8 RGB.

        Raises:
            OSError: the video cannot be written.
        """
        if self._writer is None:
            self._writer = self._open(picture.shape[1], picture.shape[0])
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self._frames += 1

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        for decimals in _DECIMALS:
            rate = max(1.0, round(self._rate, decimals))
            writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
            if writer.isOpened():
                return writer
        raise OSError(
            f"{self._path} cannot be written: its folder is not writable, or this OpenCV cannot encode mp4 of "
            f"{width}x{height} pixels at {self._rate:g} frames a second. --no-draw leaves pictures out"
        )
