"""Writing files whole or not at all, and images with a check."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import numpy.typing as npt

_PARTIAL = ".partial"
# In characters; file systems allow names of 255 bytes.
_LONGEST_PREFIX = 40

# What a disk answers that takes nothing more.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def naming_the_file(path: str | Path) -> Iterator[None]:
    """Within, the error of a full, read-only or broken disk, which mostly names no file, becomes one that does.

    Args:
        path: to be named.

    Raises:
        OSError: in place of any error that came of such a one: PyTorch's, for one, says nothing of the disk.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno in _DISK_ERRORS):
            cause = cause.__cause__ or cause.__context__
        if cause is None or (isinstance(error, OSError) and _is_known(error.filename)):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _is_known(file: object) -> bool:
    """Whether the reader of an error knows the file that it names, which a partial one is not."""
    return file is not None and not str(file).endswith(_PARTIAL)


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
    with naming_the_file(path):
        try:
            with _partial_file(path) as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            if error.filename is None or _is_known(error.filename):
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _partial_file(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path``, which takes its place or, after an error, is removed."""
    partial = path.parent / f".{path.name[:_LONGEST_PREFIX]}.{uuid.uuid4().hex[:8]}{_PARTIAL}"
    with partial.open("x+b") as file:
        try:
            yield file
        except BaseException:
            with suppress(OSError):  # it flushes, which fails again on a full disk
                file.close()
            partial.unlink()
            raise
    partial.replace(path)


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
