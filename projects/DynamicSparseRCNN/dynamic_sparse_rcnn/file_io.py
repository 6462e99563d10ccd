"""Writing files whole or not at all, and images with a check."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the place of ``path`` once all of it is on the disk, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".partial", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Temporary files are for their owner alone: this one gets what an ordinary file would have.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(file.name, 0o666 & ~mask)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def write_json(content: Any, path: str | Path, indent: int | None = None) -> None:
    """Writes JSON, whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=indent) + "\n").encode())


def write_image(image: npt.NDArray[np.uint8], path: str | Path) -> None:
    """Writes an image in the format that the suffix names.

    Args:
        image: (H, W, 3) RGB.
        path: its folder is created.

    Raises:
        OSError: if OpenCV cannot write it: an unknown suffix, no permission, no space.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise OSError(f"could not write {path}: use a suffix such as .png or .jpg") from error
    if not written:
        raise OSError(f"could not write {path}: check that its folder is writable and has space")
