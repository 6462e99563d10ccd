"""Image files as they really are: reading them, and finding before a run those that it could not use."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data.detection_utils import SizeMismatchError, convert_PIL_to_numpy
from detectron2.data.detection_utils import read_image as read_8_bit_image
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

#: What reading an image file can raise when the file is damaged, missing or has another size than annotated.
IMAGE_ERRORS = (
    OSError,
    SyntaxError,  # of Pillow, for a damaged PNG
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    SizeMismatchError,
)

_FIRST_FILES = 5
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_UNBOUNDED_MODES = ("F",)
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
# The ends of complete files. A JPEG's data never contain its end marker, a PNG's last chunk has a fixed content.
_JPEG_END = b"\xff\xd9"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_EXIF = b"eXIf"
_LONGEST_EXIF = 1 << 16


def read_image(file_name: str, image_format: str) -> npt.NDArray[np.uint8]:
    """detectron2's ``read_image`` (grey, palette and transparent images in colour, turned as their EXIF data say),
    also for 16-bit grey images: their values are divided by 256, where Pillow would clip them at 255.

    Args:
        file_name: anything ``PathManager`` can open.
        image_format: ``INPUT.FORMAT``.

    Returns:
        (H, W, 3) uint8.

    Raises:
        IMAGE_ERRORS: if the file cannot be read; ValueError for pixels without a known range.
    """
    with PathManager.open(file_name, "rb") as file:
        image = Image.open(file)
        if image.mode in _UNBOUNDED_MODES:
            raise ValueError(f"{file_name} has floating-point pixels of unknown range. Convert it to 8 or 16 bits.")
        if image.mode in _DEEP_MODES:
            deep = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
            shallow = Image.fromarray((deep // 256).clip(0, 255).astype(np.uint8))
            return convert_PIL_to_numpy(shallow, image_format)
    return read_8_bit_image(file_name, format=image_format)


@dataclass(frozen=True)
class ImageReport:
    """What a look at the image files found.

    Attributes:
        unusable: file and reason of every image that cannot be used.
        deep: files of 16-bit images.
    """

    unusable: tuple[tuple[str, str], ...]
    deep: tuple[str, ...]

    def warnings(self) -> list[str]:
        """One line for each kind of finding."""
        warnings = []
        if self.unusable:
            warnings.append(f"images dropped: {len(self.unusable)} cannot be used, {self.first_unusable()}")
        if self.deep:
            first = ", ".join(map(os.path.basename, self.deep[:_FIRST_FILES]))
            warnings.append(f"{len(self.deep)} images have 16 bits, read as value / 256, first: {first}")
        return warnings

    def first_unusable(self) -> str:
        """The first files that cannot be used, each with the reason."""
        return "first: " + "; ".join(f"{file} {reason}" for file, reason in self.unusable[:_FIRST_FILES])


def check_images(dicts: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], ImageReport]:
    """Look at the file of every image, without decoding it where its end shows that it is complete.

    Files that do not exist, and those behind an address (``https://``), are passed over. The processes of a run, all
    of which call this, share the files.

    Args:
        dicts: detectron2's data set dictionaries.

    Returns:
        The dictionaries of the images that can be used, and the report.
    """
    share = range(comm.get_rank(), len(dicts), comm.get_world_size())
    shares = comm.all_gather(_look_at([(position, dicts[position]) for position in share]))
    unusable = {position: problem for problems, _ in shares for position, problem in problems.items()}
    deep = sorted(position for _, positions in shares for position in positions)
    report = ImageReport(
        tuple((dicts[i]["file_name"], unusable[i]) for i in sorted(unusable)),
        tuple(dicts[i]["file_name"] for i in deep),
    )
    return [record for i, record in enumerate(dicts) if i not in unusable], report


def _look_at(records: Sequence[tuple[int, dict[str, Any]]]) -> tuple[dict[int, str], list[int]]:
    """The problems of the unusable images, and the 16-bit images, by their positions."""
    unusable: dict[int, str] = {}
    deep = []
    for position, record in records:
        file = record["file_name"]
        if not os.path.isfile(file):
            continue
        try:
            with Image.open(file) as image:
                problem = _size_problem(image, record) or _mode_problem(image)
                is_deep = image.mode in _DEEP_MODES
                if problem is None and not _is_complete(file, image.format):
                    image.load()
        except IMAGE_ERRORS as error:
            problem, is_deep = f"cannot be read ({error}): replace it or remove it from the annotations", False
        if problem:
            unusable[position] = problem
        elif is_deep:
            deep.append(position)
    return unusable, deep


def _size_problem(image: Image.Image, record: dict[str, Any]) -> str | None:
    size = image.size
    turned = _is_turned_by_a_quarter(image, record["file_name"])
    if turned:
        size = size[::-1]
    annotated = (record.get("width", size[0]), record.get("height", size[1]))
    if size == annotated:
        return None
    if turned and size[::-1] == annotated:
        return (
            f"is {size[0]}x{size[1]} once turned as its EXIF orientation says, but annotated unturned, as "
            f"{annotated[0]}x{annotated[1]}: remove the EXIF orientation, or annotate the turned image"
        )
    return (
        f"is {size[0]}x{size[1]}, but annotated as {annotated[0]}x{annotated[1]}: correct width and height if the "
        "boxes belong to this image, or restore the image that was annotated"
    )


def _is_turned_by_a_quarter(image: Image.Image, file: str) -> bool:
    # Pillow decodes every PNG for EXIF data that may be behind its pixels; the end of the file shows whether there are.
    decoding = image.format == "PNG" and _PNG_EXIF in _end_of(file, _LONGEST_EXIF)
    exif = image.getexif() if decoding else Image.Image.getexif(image)
    return exif.get(_EXIF_ORIENTATION) in _QUARTER_TURNS


def _mode_problem(image: Image.Image) -> str | None:
    if image.mode in _UNBOUNDED_MODES:
        return "has floating-point pixels of unknown range: convert it to 8 or 16 bits"
    return None


def _is_complete(file: str, image_format: str | None) -> bool:
    """Whether the end of the file shows that nothing is missing; if not, it takes decoding to know."""
    ends = {"JPEG": _JPEG_END, "PNG": _PNG_END}
    if image_format not in ends:
        return False
    return _end_of(file, len(_PNG_END)).endswith(ends[image_format])


def _end_of(file: str, length: int) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(max(0, os.path.getsize(file) - length))
        return opened.read()
