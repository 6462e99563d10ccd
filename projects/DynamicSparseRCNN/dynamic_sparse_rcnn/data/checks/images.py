"""Finds image files that a run cannot use, before it starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.utils import comm
from PIL import Image

from ..images import (
    DEEP_MODES,
    IMAGE_ERRORS,
    UNBOUNDED_MODES,
    end_of_file,
    holds_several,
    is_rotated_by_a_quarter,
    rotated_size,
)
from ..mapper import Resize
from ..records import Record

_FIRST_FILES = 5
# How complete files end. A JPEG's data cannot contain its end marker; a PNG's last chunk is always the same.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_LONGEST_END = max(map(len, _ENDS.values()))


@dataclass(frozen=True)
class ImageReport:
    """What was found in the image files.

    Attributes:
        unusable: file and reason, for every image that cannot be used.
        deep: the files of 16-bit images.
        several: the files that hold several images.
    """

    unusable: tuple[tuple[str, str], ...]
    deep: tuple[str, ...]
    several: tuple[str, ...]

    def warnings(self) -> list[str]:
        """One line per kind of finding."""
        warnings = []
        if self.unusable:
            warnings.append(f"images dropped: {len(self.unusable)} cannot be used, {self.first_unusable()}")
        for files, finding in (
            (self.deep, "images have 16 bits, read as value / 256"),
            (self.several, "files hold several images (pages, frames of an animation), of which the first is read"),
        ):
            if files:
                warnings.append(f"{len(files)} {finding}, first: {', '.join(files[:_FIRST_FILES])}")
        return warnings

    def first_unusable(self) -> str:
        """The first files that cannot be used, each with the reason."""
        return "first: " + "; ".join(f"{file} {reason}" for file, reason in self.unusable[:_FIRST_FILES])


def check_images(records: Sequence[Record], resize: Resize | None = None) -> tuple[list[Record], ImageReport]:
    """Checks the file of every image; decodes it only if its last bytes do not show that it is complete.

    Files that do not exist, and URLs, are skipped. All processes of a run must call this; they share the work.

    Args:
        records: the data set's.
        resize: how images are resized for the network; None: not at all.

    Returns:
        The records of the usable images, and the report.
    """
    share = range(comm.get_rank(), len(records), comm.get_world_size())
    shares = comm.all_gather([(i, *_look_at(records[i], resize)) for i in share])
    found = sorted(look for looks in shares for look in looks)
    unusable = {i: problem for i, problem, *_ in found if problem}
    report = ImageReport(
        tuple((records[i]["file_name"], problem) for i, problem in unusable.items()),
        tuple(records[i]["file_name"] for i, problem, is_deep, _ in found if is_deep and not problem),
        tuple(records[i]["file_name"] for i, problem, _, is_several in found if is_several and not problem),
    )
    return [record for i, record in enumerate(records) if i not in unusable], report


def _look_at(record: Record, resize: Resize | None) -> tuple[str, bool, bool]:
    """What is wrong with an image (the empty string: nothing), whether it has 16 bits, and whether others follow it."""
    file = record["file_name"]
    if not os.path.isfile(file):
        return "", False, False
    try:
        with Image.open(file) as image:
            problem = _size_problem(image, record) or _mode_problem(image)
            if not problem and resize is not None:
                problem = resize.problem(*rotated_size(image, file))
            if not problem and not _is_complete(file, image.format):
                image.load()
            return problem, image.mode in DEEP_MODES, holds_several(image)
    except IMAGE_ERRORS as error:
        return f"cannot be read ({error}): replace it or remove it from the annotations", False, False


def _size_problem(image: Image.Image, record: Record) -> str:
    size = rotated_size(image, record["file_name"])
    annotated = (record.get("width", size[0]), record.get("height", size[1]))
    if size == annotated:
        return ""
    if size[::-1] == annotated and is_rotated_by_a_quarter(image, record["file_name"]):
        return (
            f"is {size[0]}x{size[1]} once rotated as its EXIF orientation says, but annotated unrotated, as "
            f"{annotated[0]}x{annotated[1]}: remove the EXIF orientation, or annotate the rotated image"
        )
    return (
        f"is {size[0]}x{size[1]}, but annotated as {annotated[0]}x{annotated[1]}: correct width and height if the "
        "boxes belong to this image, or restore the image that was annotated"
    )


def _mode_problem(image: Image.Image) -> str:
    if image.mode in UNBOUNDED_MODES:
        return "has floating-point pixels of unknown range: convert it to 8 or 16 bits"
    return ""


def _is_complete(file: str, image_format: str | None) -> bool:
    """Whether the last bytes show that nothing is missing; if they do not, the image has to be decoded."""
    end = _ENDS.get(image_format or "")
    return end is not None and end_of_file(file, _LONGEST_END).endswith(end)
