"""Reading annotation files, whatever program wrote them."""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
import zlib

from detectron2.utils.file_io import PathManager


def is_url(path: str) -> bool:
    """Whether a path is a URL, for detectron2's ``PathManager``."""
    return "://" in path


def read_bytes(file: str) -> bytes:
    """The content of a file, decompressed if it is a gzip file.

    Args:
        file: anything detectron2's ``PathManager`` can open.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be read.
        ValueError: if its compressed data are damaged.
    """
    if not is_url(file) and not os.path.isfile(file):
        found = "is a folder" if os.path.isdir(file) else "does not exist"
        raise FileNotFoundError(f"Annotation file {file} {found}. Correct the path.")
    try:
        with PathManager.open(file, "rb") as opened:
            content: bytes = opened.read()
    except OSError as error:
        # Of all others, the class may want more than a message.
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"Annotation file {file} cannot be read: {error}") from error
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is a damaged gzip file: {error}. Restore it.") from error


def read_text(file: str) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, without a byte order mark.

    Raises:
        OSError, ValueError: see :func:`read_bytes`; or if the text has another encoding.
    """
    content = read_bytes(file)
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not {encoding} text: {error}. Save it as UTF-8.") from error


def is_text(value: object) -> bool:
    """Whether a value from a file is a string that is not blank and can be encoded."""
    try:
        return isinstance(value, str) and bool(value.strip() and value.encode())
    except UnicodeEncodeError:  # unpaired surrogates
        return False


def class_name(text: str) -> str:
    """The name of a class: without spaces around it, and composed, since systems write é as one sign or as two."""
    return unicodedata.normalize("NFC", text.strip())


def join_image_path(folder: str, name: str) -> str:
    """The path of an image. Backslashes are separators if the file only exists then."""
    path = os.path.join(folder, name)
    if "\\" in name and not os.path.isfile(path):
        with_slashes = os.path.join(folder, name.replace("\\", "/"))
        return with_slashes if os.path.isfile(with_slashes) else path
    return path


def require_folder(folder: str, content: str, form: str) -> None:
    """Raises ``FileNotFoundError`` if a folder that is not a URL does not exist; ``form`` is that of the name."""
    if not is_url(folder) and not os.path.isdir(folder):
        found = "is a file" if os.path.isfile(folder) else "does not exist"
        raise FileNotFoundError(f"The folder {content}, {folder}, {found}. Correct the path in {form!r}.")
