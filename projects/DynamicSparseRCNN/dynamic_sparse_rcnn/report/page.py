"""What a page is made of, and the page as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .charts import Chart


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is shaded, from 0 to 1."""

    text: str
    shade: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table with a caption, whose first column names the rows."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""


@dataclass(frozen=True)
class DrawnImage:
    """An image by its ``data:`` URI, the same in words, and what stands below it."""

    uri: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a page, in this order: paragraphs, tables, charts, images by their heading, lines for a shell, and
    texts by their heading. What is empty or None is not shown."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart | None] = field(default_factory=list)
    images: dict[str, list[DrawnImage]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        content = (self.notes, self.tables, self.images, self.commands, *self.charts, *self.texts.values())
        return any(content)


def render(title: str, sections: Sequence[Section]) -> str:
    """The whole page, which needs no other file and no network."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(title=title, sections=[s for s in sections if s])
