"""The interface of data set formats: parse a name, read classes and records."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from detectron2.utils.registry import Registry

from ..records import Record
from ..splits import SplitPart

if TYPE_CHECKING:
    from typing_extensions import Self

DATASET_FORMAT_REGISTRY = Registry("DATASET_FORMAT")
DATASET_FORMAT_REGISTRY.__doc__ = "Registry of the subclasses of :class:`DatasetFormat`."
# How names end that stand for a part of the images.
_PART = re.compile(r":(?P<share>[\d.-]*%)(?::(?P<seed>[^:/\\]*))?$")


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, in the order of their contiguous ids.

    Attributes:
        names: for people.
        category_ids: the ids in annotation files and results.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    @classmethod
    def numbered_from_zero(cls, names: Sequence[str]) -> Self:
        """Classes whose category ids are their contiguous ids."""
        return cls(tuple(names), tuple(range(len(names))))


class DatasetFormat(ABC):
    """A data set named ``<prefix>:<rest>``. Registering a subclass makes such names usable everywhere.

    Attributes:
        prefix: the part of the name before the first colon.
        form: the form of the whole name, for error messages.
    """

    prefix: ClassVar[str]
    form: ClassVar[str]

    @classmethod
    @abstractmethod
    def parse(cls, rest: str) -> DatasetFormat:
        """Parses a name, without reading files.

        Args:
            rest: the name without ``<prefix>:``; see :func:`path_separators` for colons within paths.

        Raises:
            ValueError: if the name does not have this form; the message, which may be empty, tells why.
        """

    @abstractmethod
    def classes(self) -> Classes:
        """Reads the classes, which should not depend on the split.

        Raises:
            OSError, ValueError: if files are missing or malformed; the message names the file.
        """

    @abstractmethod
    def records(self, classes: Classes) -> list[Record]:
        """Reads the images with their annotations, in detectron2's format.

        Each has ``file_name``, ``image_id``, ``height``, ``width`` and ``annotations``: ``bbox``, ``bbox_mode`` and
        ``category_id`` (contiguous); optionally ``iscrowd``, and ``area`` in pixels for COCO's size buckets.

        Args:
            classes: what :meth:`classes` returned when the data set was registered.

        Raises:
            OSError, ValueError: if files are missing or malformed; the message names the file.
        """

    @classmethod
    def names_in(cls, folder: Path) -> dict[str, str]:
        """Names of the data sets of this format that a folder holds, by a word that tells their split.

        Args:
            folder: that exists.
        """
        return {}

    def metadata(self) -> dict[str, str | int]:
        """More entries for ``MetadataCatalog``, such as what evaluators other than COCO's need."""
        return {}


def parse_dataset_name(name: str) -> DatasetFormat | None:
    """Parses the name of a data set; None if it does not start with a registered prefix.

    Raises:
        ValueError: if the name does not have the form that belongs to its prefix.
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
    """The positions of colons that may separate paths, unlike those in ``https://`` and ``C:\\``."""
    return [
        match.start()
        for match in re.finditer(r":(?!//)", text)
        if not (re.search(r"(?:^|:)[A-Za-z]$", text[: match.start()]) and text[match.end() :][:1] in ("/", "\\"))
    ]


def split_last(text: str) -> tuple[str, str]:
    """Splits ``<path>:<word>`` at the last separator; the path may contain colons.

    Raises:
        ValueError: if one of the two is missing.
    """
    positions = path_separators(text)
    path, word = (text[: positions[-1]], text[positions[-1] + 1 :]) if positions else (text, "")
    if not path or not word:
        raise ValueError
    return path, word


def split_part(text: str) -> tuple[str, SplitPart | None]:
    """Splits the part of the images, if one is named, off the end of a name.

    Raises:
        ValueError: if it is no part.
    """
    match = _PART.search(text)
    return (text[: match.start()], SplitPart.parse(match["share"], match["seed"] or "0")) if match else (text, None)


def records_of_part(records: list[Record], part: SplitPart | None, key: str) -> list[Record]:
    """The records of a part; all if it is None. Their ``key`` decides, which must not depend on where the data are."""
    if part is None:
        return records
    chosen = part.select(record[key] for record in records)
    return [record for record in records if record[key] in chosen]
