"""Drawn predictions as image files, or as a video where they are the frames of one."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

from .results import Prediction
from .sources import FrameSource, Video


class PictureWriter:
    """Writes what one source's predictions look like, into a folder.

    Images are called as their files are, with ``.png``; of two with one name the second gets a number. The frames of
    a video become ``<its name>.mp4``.
    """

    def __init__(self, folder: Path, source: FrameSource, written: set[Path]) -> None:
        """
        Args:
            folder: that exists.
            source: of the predictions.
            written: the files of this run so far, to which this writer's are added; earlier runs' are replaced.
        """
        self._folder = folder
        self._source = source
        self._written = written
        self._video: cv2.VideoWriter | None = None

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._video is not None:
            self._video.release()

    def write(self, prediction: Prediction) -> None:
        """Draws and writes one prediction.

        Raises:
            OSError: the file cannot be written.
        """
        if isinstance(self._source, Video):
            self._write_frame(prediction.draw())
        else:
            prediction.save(self._unused(Path(prediction.name).stem, ".png"))

    def _write_frame(self, picture: npt.NDArray[np.uint8]) -> None:
        height, width = picture.shape[:2]
        if self._video is None:
            path = self._unused(Path(self._source.name if isinstance(self._source, Video) else "video").stem, ".mp4")
            rate = self._source.frames_per_second or 1
            self._video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
            if not self._video.isOpened():
                raise OSError(f"{path} cannot be written: this OpenCV cannot encode mp4, use --no-draw")
        self._video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def _unused(self, stem: str, suffix: str) -> Path:
        path, number = self._folder / f"{stem}{suffix}", 1
        while path in self._written:
            number += 1
            path = self._folder / f"{stem}_{number}{suffix}"
        self._written.add(path)
        return path
