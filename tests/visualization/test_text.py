"""Class names of any language, drawn with the fonts that are installed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from matplotlib import font_manager

from dynamic_sparse_rcnn.visualization import text
from dynamic_sparse_rcnn.visualization.figures import draw_detections
from dynamic_sparse_rcnn.visualization.text import drawable_names, drawable_text


@pytest.fixture
def fonts(monkeypatch, tmp_path):
    """Makes the given files the fonts of the system."""

    def install(*files: Path) -> None:
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(file) for file in files])
        text._find_font.cache_clear()
        text._drawable_names.cache_clear()

    install()
    yield install
    text._find_font.cache_clear()
    text._drawable_names.cache_clear()


def make_font(path: Path, characters: str) -> Path:
    """A font in which each of the characters is a filled square."""
    builder_module = pytest.importorskip("fontTools.fontBuilder")
    pen_class = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen
    pen = pen_class(None)
    pen.moveTo((0, 0))
    for point in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"square{i}" for i in range(len(characters)))]
    builder = builder_module.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): name for c, name in zip(characters, names[1:], strict=True)})
    builder.setupGlyf({".notdef": pen_class(None).glyph()} | dict.fromkeys(names[1:], square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def drawn(class_name: str) -> np.ndarray:
    found = Instances(
        (200, 200),
        pred_boxes=Boxes(torch.tensor([[10.0, 20, 190, 180]])),
        scores=torch.ones(1),
        pred_classes=torch.tensor([0]),
    )
    return draw_detections(np.full((200, 200, 3), 128, np.uint8), found, [class_name], scale=1)


def label_width(class_name: str) -> int:
    """In pixels, of the dark ground that a label is drawn on."""
    return int((drawn(class_name)[24:34].max(axis=2) < 60).any(axis=0).sum())


@pytest.mark.parametrize("name", ["$1_or_$2", "$5 bill$", "a^b", r"\frac", "100%", "{x}", "_"])
def test_no_character_of_a_name_is_markup(name, fonts, caplog):
    assert drawable_names([name]) == (name,) and not caplog.records
    plain = "".join(character for character in name if character.isalnum() or character == " ")
    assert label_width(name) - label_width(plain) >= 3 * (len(name) - len(plain))


def test_names_whose_characters_no_font_has_are_transliterated_or_numbered_and_that_is_said_once(fonts, caplog):
    names = ["dog", "Größe", "Łódź", "ｃａｔ", "猫", "猫1", "ant\nbee"]
    with caplog.at_level(logging.WARNING):
        assert drawable_names(names) == ("dog", "Größe", "Łódź", "cat", "class 4", "class 5", "ant bee")
        drawable_names(names)
    (record,) = caplog.records
    message = record.getMessage()
    assert (
        "characters of 3 class names: drawing cat for 'ｃａｔ', class 4 for '猫'" in message and "fonts-noto" in message
    )


def test_an_installed_font_that_has_the_characters_draws_them(fonts, tmp_path, caplog):
    fonts(make_font(tmp_path / "a.ttf", "犬"), make_font(tmp_path / "b.ttf", "猫:0123456789% "))
    assert drawable_names(["猫"]) == ("猫",) and not caplog.records
    # Each glyph of the font is a full square: a 13 pixels high row of them is white.
    label = drawn("猫")[20:37, 12:60]
    assert (label == 255).all(axis=2).sum() > 13 * 13 * 2


def test_files_that_are_no_fonts_are_passed_over(fonts, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fonts(tmp_path / "broken.ttf", make_font(tmp_path / "c.ttf", "猫"))
    assert drawable_text("猫") == "猫"


def test_captions_have_question_marks_for_what_cannot_be_drawn(fonts):
    assert drawable_text("照片 猫.jpg: 3") == "?? ?.jpg: 3"
