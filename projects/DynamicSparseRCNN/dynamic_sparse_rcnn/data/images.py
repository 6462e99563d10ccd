"""Reading image files, and their sizes without decoding them."""

from __future__ import annotations

import os
import struct

import numpy as np
import numpy.typing as npt
from detectron2.data.detection_utils import SizeMismatchError, convert_PIL_to_numpy
from detectron2.data.detection_utils import read_image as read_8_bit_image
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

#: Of files that folders are searched for, in lower case.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
#: What reading an image file can raise if it is damaged, missing or not of the annotated size.
IMAGE_ERRORS = (
    OSError,
    SyntaxError,  # of Pillow, for a damaged PNG
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    SizeMismatchError,
)
#: Pillow's modes of images with 16 bits a pixel.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
#: Pillow's modes of images whose pixels have no known range.
UNBOUNDED_MODES = ("F",)

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
_PNG_EXIF = b"eXIf"
_LONGEST_EXIF = 1 << 16


def read_image(file_name: str, image_format: str) -> npt.NDArray[np.uint8]:
    """Reads an image as detectron2's ``read_image`` does: in color, and rotated as its EXIF data say.

    16-bit values are divided by 256, where Pillow would clip them at 255.

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
        if image.mode in UNBOUNDED_MODES:
            raise ValueError(f"{file_name} has floating-point pixels of unknown range. Convert it to 8 or 16 bits.")
        if image.mode in DEEP_MODES:
            return to_pixels(image, image_format)
    return read_8_bit_image(file_name, format=image_format)


def to_pixels(image: Image.Image, image_format: str) -> npt.NDArray[np.uint8]:
    """What :func:`read_image` returns for an image that is open, (H, W, 3) uint8."""
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP_MODES:
        image = Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8))
    pixels: npt.NDArray[np.uint8] = convert_PIL_to_numpy(image, image_format)
    return pixels


def holds_several(image: Image.Image) -> bool:
    """Whether a file has several images (pages, frames of an animation), of which :func:`read_image` reads the first.

    Previews and depth maps, which phones write behind their photographs, do not count.
    """
    return getattr(image, "is_animated", False) and image.format != "MPO"


def rotated_size(image: Image.Image, file: str) -> tuple[int, int]:
    """Width and height of what :func:`read_image` returns, without decoding the image.

    Args:
        image: as ``Image.open`` returns it.
        file: its path, not a URL.
    """
    width, height = image.size
    return (height, width) if is_rotated_by_a_quarter(image, file) else (width, height)


def is_rotated_by_a_quarter(image: Image.Image, file: str) -> bool:
    """Whether EXIF data swap an image's width and height; see :func:`rotated_size`."""
    # A PNG may have EXIF data after its pixels, for which Pillow decodes it; the last bytes show whether there are any.
    decoding = image.format == "PNG" and _PNG_EXIF in end_of_file(file, _LONGEST_EXIF)
    exif = image.getexif() if decoding else Image.Image.getexif(image)
    return exif.get(_EXIF_ORIENTATION) in _QUARTER_TURNS


def end_of_file(file: str, length: int) -> bytes:
    """The last ``length`` bytes of a file, or all of them."""
    with open(file, "rb") as opened:
        opened.seek(max(0, os.path.getsize(file) - length))
        return opened.read()
