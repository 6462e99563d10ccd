"""The data.yaml of a data set in YOLO's layout."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import yaml
from detectron2.utils.logger import log_first_n

from .reading import class_name, is_text, read_text

Data: TypeAlias = "dict[str, object]"

_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
# Keys whose values are no images.
_NO_SPLITS = ("path", "names", "nc", "download", "kpt_shape")


def read_yaml(file: str) -> Data:
    """The content of a data.yaml.

    Raises:
        OSError, ValueError: if it cannot be read.
    """
    try:
        # Without types, so that the class names no and 007 remain strings.
        data = yaml.load(read_text(file), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file} is not a YAML file: {' '.join(str(error).split())}. Correct it.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} is not a mapping of keys to values. Name the data.yaml of a YOLO data set.")
    return data


def find_places(data: Data, split: str, file: str) -> tuple[tuple[str, str], tuple[str, ...]]:
    """The folders to which paths may be relative, the most likely first, and the folders and lists of a split.

    Args:
        data: content of the data.yaml.
        split: a key of it.
        file: path of the data.yaml.

    Raises:
        FileNotFoundError: if one of them does not exist.
        ValueError: if the split has none.
    """
    entries = _entries(data, split)
    if not entries:
        found = [key for key in data if key not in _NO_SPLITS and _entries(data, key)]
        raise ValueError(f"{file} has no images of the split {split!r}; its other keys are {', '.join(found[:20])}.")
    folder = os.path.dirname(file)
    path = data.get("path", "")
    # If the data were moved, `path` is a folder of another machine.
    root = os.path.join(folder, os.path.expanduser(path)) if isinstance(path, str) else folder
    roots = (root, folder) if os.path.isdir(root) else (folder, root)
    return roots, tuple(_existing(entry, roots, f"{file}: {split}") for entry in entries)


def has_images(data: Data, split: str, file: str) -> bool:
    """Whether :func:`find_places` finds a split; a warning names a path that does not exist."""
    try:
        return bool(_entries(data, split) and find_places(data, split, file))
    except FileNotFoundError as error:
        log_first_n(logging.WARNING, str(error), key="message")
        return False


def _entries(data: Data, split: str) -> list[str]:
    value = data.get(split)
    entries: list[Any] = value if isinstance(value, list) else [value]
    return entries if all(map(is_text, entries)) else []


def names_of(data: Data, file: str) -> dict[int, str]:
    """The class names by class number.

    Raises:
        ValueError: if they are missing or malformed.
    """
    names, count = data.get("names"), str(data.get("nc", ""))
    if names is None and _NUMBER.fullmatch(count):
        names = [f"class {i}" for i in range(int(count))]
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{file}: 'names' is neither a list of class names nor a mapping of numbers to names. Add it.")
    for key, name in names.items():
        if not (_NUMBER.fullmatch(key) and is_text(name)):
            raise ValueError(f"{file}: 'names' has {key!r}: {name!r}. Write a number and a name.")
    if _NUMBER.fullmatch(count) and count != str(len(names)):
        raise ValueError(f"{file}: 'nc' is {count}, but there are {len(names)} 'names'. Correct one of them.")
    return {number: class_name(names[key]) for number, key in sorted((int(key), key) for key in names)}


def candidates(entry: str, roots: Sequence[str]) -> list[str]:
    """What a path may stand for. Roboflow writes ``../`` for the folder of the data.yaml, CVAT ``data/``."""
    spellings = (entry.strip(), entry.strip().replace("\\", "/"))
    paths = [path.removeprefix(prefix) for path in spellings for prefix in ("", "../", "data/")]
    return list(dict.fromkeys(os.path.normpath(os.path.join(root, path)) for path in paths for root in roots))


def _existing(entry: str, roots: Sequence[str], origin: str) -> str:
    paths = candidates(entry, roots)
    for path in paths:
        if os.path.exists(path):
            return path
    raise FileNotFoundError(f"{origin} is {entry!r}, but {' and '.join(paths)} do not exist. Correct the path.")
