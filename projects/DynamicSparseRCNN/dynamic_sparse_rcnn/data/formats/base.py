"""What a data set format is: it parses a data set's name, and gives classes and records."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from detectron2.utils.registry import Registry

from ..records import Record

DATASET_FORMAT_REGISTRY = Registry("DATASET_FORMAT")
DATASET_FORMAT_REGISTRY.__doc__ = "Registry of the subclasses of :class:`DatasetFormat`."


@dataclass(frozen=True)
class Classes:
    """The classes of a data set in the order of their contiguous ids.

    Attributes:
        names: what people call them.
        category_ids: what the annotation files call them.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    @classmethod
    def numbered_from_zero(cls, names: tuple[str, ...]) -> Classes:
        """Classes whose category id is their contiguous id."""
        return cls(names, tuple(range(len(names))))


class DatasetFormat(ABC):
    """One data set, named ``<prefix>:<rest>``. A registered subclass makes such names usable wherever a data set is.

    Attributes:
        prefix: what names of this format start with, before the first colon.
        form: the form of the whole name, for error messages.
    """

    prefix: ClassVar[str]
    form: ClassVar[str]

    @classmethod
    @abstractmethod
    def parse(cls, rest: str) -> DatasetFormat:
        """The data set that a name stands for. Files are not read.

        Args:
            rest: the name without ``<prefix>:``; see :func:`path_separators` for colons within paths.

        Raises:
            ValueError: if the name does not have this form, with the reason if there is more to say.
        """

    @abstractmethod
    def classes(self) -> Classes:
        """Reads the classes, which must not depend on the split.

        Raises:
            OSError, ValueError: if files are missing or malformed; the message names the file.
        """

    @abstractmethod
    def records(self, classes: Classes) -> list[Record]:
        """Reads the images with their annotations, as detectron2's dictionaries.

        Each has ``file_name``, ``image_id``, ``height``, ``width`` and ``annotations``: ``bbox``, ``bbox_mode`` and
        ``category_id`` (contiguous); optionally ``iscrowd``, and ``area`` in pixels for COCO's size buckets.

        Args:
            classes: what :meth:`classes` gave when the data set was registered.

        Raises:
            OSError, ValueError: if files are missing or malformed; the message names the file.
        """

    def metadata(self) -> dict[str, Any]:
        """More for detectron2's ``MetadataCatalog``, such as what an evaluator other than COCO's needs."""
        return {}


def parse_dataset_name(name: str) -> DatasetFormat | None:
    """The data set that a name stands for, or None if the name has no registered prefix.

    Raises:
        ValueError: if the name has a registered prefix, but not the form that belongs to it.
    """
    prefix, separator, rest = name.partition(":")
    for _, dataset_format in DATASET_FORMAT_REGISTRY:
        if separator and dataset_format.prefix == prefix:
            try:
                dataset: DatasetFormat = dataset_format.parse(rest)
            except ValueError as error:
                reason = f": {error}" if str(error) else "."
                raise ValueError(f"Data set {name!r} does not have the form {dataset_format.form!r}{reason}") from error
            return dataset
    return None


def known_forms() -> str:
    """The forms of all registered formats, for error messages."""
    return ", ".join(repr(dataset_format.form) for _, dataset_format in DATASET_FORMAT_REGISTRY)


def path_separators(text: str) -> list[int]:
    """Positions of the colons that may separate paths: not those of ``https://`` or of a drive such as ``C:\\``."""
    return [
        match.start()
        for match in re.finditer(r":(?!//)", text)
        if not (re.search(r"(?:^|:)[A-Za-z]$", text[: match.start()]) and text[match.end() :][:1] in ("/", "\\"))
    ]


def split_last(text: str) -> tuple[str, str]:
    """``<path>:<word>``, where the path may contain colons.

    Raises:
        ValueError: if one of the two is missing.
    """
    positions = path_separators(text)
    path, word = (text[: positions[-1]], text[positions[-1] + 1 :]) if positions else (text, "")
    if not path or not word:
        raise ValueError
    return path, word
