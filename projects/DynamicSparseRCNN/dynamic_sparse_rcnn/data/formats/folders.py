"""Finds the splits of a data set in its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from .base import DATASET_FORMAT_REGISTRY, known_forms

_WORDS = re.compile(r"(?<![a-z])(?:(train)(?:ing)?|(val)(?:id(?:ation)?)?|(test))(?![a-z])")


def find_splits(folder: str) -> dict[str, str]:
    """The names of the data sets in a folder, by split: "train", "val", "test".

    Raises:
        ValueError: no registered format finds any.
    """
    place = Path(folder).expanduser()
    for _, dataset_format in DATASET_FORMAT_REGISTRY:
        found: dict[str, str] = {}
        for word, name in dataset_format.names_in(place).items():
            split = split_of(word)
            if split:
                found.setdefault(split, name)
        if found:
            return found
    raise ValueError(
        f"{folder}: no train, val or test split was found in this folder, such as annotations/train.json (COCO), "
        f"ImageSets/Main/train.txt (VOC) or data.yaml (YOLO). Name the files instead: {known_forms()}"
    )


def split_of(word: str) -> str | None:
    """The split that a name such as ``instances_val2017`` means; None if it means none."""
    match = _WORDS.search(word.lower())
    return next(split for split in match.groups() if split) if match else None


def expand_folders(names: Sequence[str], *wanted: str) -> list[str]:
    """Names of data sets; where a name is a folder, the first of the wanted splits that it has, or all without any.

    Raises:
        ValueError: a folder has none of them.
    """
    expanded = []
    for name in names:
        if not os.path.isdir(os.path.expanduser(name)):
            expanded.append(name)
            continue
        splits = find_splits(name)
        if not wanted:
            expanded += splits.values()
            continue
        split = next((split for split in wanted if split in splits), None)
        if split is None:
            raise ValueError(
                f"{name} has the splits {list(splits)}, but {' or '.join(wanted)} is needed here: name one of "
                f"{list(splits.values())}"
            )
        expanded.append(splits[split])
    return expanded
