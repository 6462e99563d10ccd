"""Writing files whole or not at all, and images with a check."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import numpy.typing as npt

_PARTIAL = ".partial"


@contextmanager
def whole_file(path: str | Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the place of ``path`` once all of it is written, or not at all.

    Args:
        path: its folder is created.
        sync: whether to wait until the content is on the disk, so that a power failure loses neither old nor new.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _partial_file(path) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            # Temporary files are for their owner alone: this one gets what an ordinary file would have.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(file.name, 0o666 & ~mask)
            os.replace(file.name, path)
    except OSError as error:
        if error.filename is None or str(error.filename).endswith(_PARTIAL):  # nobody knows the partial file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def _partial_file(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path``, which is removed after an error."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL, delete=False) as file:
        try:
            yield file
        except BaseException:
            os.unlink(file.name)
            raise


def write_json(content: object, path: str | Path, indent: int | None = None) -> None:
    """Writes JSON, whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=indent) + "\n").encode())


def write_image(image: npt.NDArray[np.uint8], path: str | Path) -> None:
    """Writes an image, whole or not at all, in the format that the suffix names.

    Args:
        image: (H, W, 3) RGB.
        path: its folder is created.

    Raises:
        OSError: the suffix is of no format that OpenCV writes, or the file cannot be written.
    """
    try:
        encoded, content = cv2.imencode(Path(path).suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        encoded = False
    if not encoded:
        raise OSError(f"{path} cannot be written as an image: give it a suffix such as .png or .jpg")
    with whole_file(path, sync=False) as file:
        file.write(content.tobytes())
