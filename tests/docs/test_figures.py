"""The figures of the pages on the method can be drawn again."""

from __future__ import annotations

from pathlib import Path

import figures
import pytest

IMAGES = Path(__file__).parents[2] / "docs/images"


@pytest.mark.slow
def test_the_script_draws_the_figures_that_the_pages_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures.main(["--output", "images"])
    drawn = {file.name: file.stat().st_size for file in (tmp_path / "images").iterdir()}
    shown = {file.name: file.stat().st_size for file in IMAGES.glob("*.*")}
    assert set(drawn) <= set(shown)
    assert all(abs(size - shown[name]) <= 0.1 * shown[name] for name, size in drawn.items())
    assert max(file.stat().st_size for file in IMAGES.rglob("*.*")) <= 300_000


def test_units_are_those_of_the_formula():
    # Of 10 ground truths, each with eight IoUs of 0.75: k = 6, half a unit less for every stage before the last.
    assert figures._units(iou_sum=6, ground_truths=10).tolist() == [3.5, 4, 4.5, 5, 5.5, 6]
    # 80 of them would supply more than 240 of the 300 proposals: 3 each.
    assert figures._units(iou_sum=6, ground_truths=80) == pytest.approx([3] * 6)
