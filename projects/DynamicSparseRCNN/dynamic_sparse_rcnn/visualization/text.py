"""Text of any language in images: a font that has its characters, or other characters that a font has."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from PIL import ImageFont

logger = logging.getLogger(__name__)

_ANY_SIZE = 16


def load_font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font for one line of text, ``size`` pixels high; Pillow's own where no font has all characters."""
    file = None if text.isascii() else _find_font(frozenset(text))
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def drawable_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as they can be drawn: transliterated, or numbered, where no installed font has their characters.

    Logs one warning for each list of names in which any had to be replaced.
    """
    return _drawable_names(tuple(names))


@lru_cache(maxsize=64)
def _drawable_names(names: tuple[str, ...]) -> tuple[str, ...]:
    drawable = tuple(drawable_text(name, f"class {index}") for index, name in enumerate(names))
    replaced = [f"{new} for {old!r}" for old, new in zip(names, drawable, strict=True) if new != " ".join(old.split())]
    if replaced:
        logger.warning(
            f"No installed font has the characters of {len(replaced)} class names: drawing {', '.join(replaced[:5])}"
            f"{', ...' if replaced[5:] else ''}. Install a font that has them (on Debian, for Chinese, Japanese and "
            "Korean: fonts-noto-cjk)."
        )
    return drawable


def drawable_text(text: str, substitute: str = "") -> str:
    """One line of text that can be drawn: the text itself if a font has it, otherwise its ASCII transliteration.

    Args:
        text: of any language.
        substitute: stands for the whole text where a letter has no transliteration; if it is empty, a question mark
            stands for each such letter.
    """
    line = " ".join(text.split())
    if line.isascii() or _find_font(frozenset(line)):
        return line
    pieces = [unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() for character in line]
    return substitute if substitute and not all(pieces) else "".join(piece or "?" for piece in pieces)


@lru_cache(maxsize=256)
def _find_font(characters: frozenset[str]) -> str | None:
    """The file of the first font that has all characters: matplotlib's DejaVu Sans, then those of the system."""
    # Here alone: most texts need no search, and matplotlib takes long to import.
    from matplotlib import font_manager, get_data_path
    from matplotlib.ft2font import FT2Font

    codes = {ord(character) for character in characters if not character.isspace()}
    for file in (f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", *sorted(font_manager.findSystemFonts())):
        try:
            if codes <= FT2Font(file).get_charmap().keys():
                ImageFont.truetype(file, _ANY_SIZE)  # bitmap fonts have few sizes
                return file
        except (OSError, RuntimeError):
            continue  # of a kind that cannot be drawn with
    return None
