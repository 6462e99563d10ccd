"""Charts as inline SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from dynamic_sparse_rcnn.report.charts import Chart, Line, draw_chart


def drawn(*lines: Line) -> Chart:
    chart = draw_chart("Loss", lines)
    assert chart is not None
    return chart


def paths_of(chart: Chart, color: int) -> list[str]:
    """What is drawn in a color of the page."""
    root = ElementTree.fromstring(chart.svg)
    stroke = f"stroke: var(--c{color})"
    return [path.get("d", "") for path in root.iter("path") if stroke in path.get("style", "")]


def test_all_colors_are_those_of_the_page() -> None:
    chart = drawn(Line("a", {0: 1, 1: 2}, 0), Line("b", {0: 2, 1: 1}, 9, dash=1))
    assert re.findall("#[0-9a-f]{6}", chart.svg.replace("url(#", "").replace('href="#', "")) == []
    assert "fill: currentColor" in chart.svg and "stroke: var(--line)" in chart.svg
    assert len(paths_of(chart, 0)) == len(paths_of(chart, 9)) == 1


def test_a_chart_has_its_content_in_words() -> None:
    root = ElementTree.fromstring(drawn(Line('a "<b>"', {10: 0.5, 20: 0.25}, 0)).svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'Loss over iteration. a "<b>": 0.5 at 10, 0.25 at 20'


def test_a_line_goes_through_its_points_and_leaves_out_nan() -> None:
    (path,) = paths_of(drawn(Line("a", {0: 0, 1: float("nan"), 2: 2, 3: 1}, 0)), 0)
    x, y = np.array([list(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path)]).T
    (x0, x1), (y0, y1) = np.diff(x), np.diff(y)
    assert x0 / x1 == pytest.approx(2, rel=1e-3) and y0 / y1 == pytest.approx(-2, rel=1e-3)


def test_long_curves_are_drawn_with_few_points() -> None:
    rng = np.random.default_rng(0)
    (path,) = paths_of(drawn(Line("a", dict(enumerate(rng.random(100_000))), 0)), 0)
    assert 100 < path.count("L") <= 400


def test_lines_without_points_have_no_chart_and_no_legend() -> None:
    assert draw_chart("Loss", [Line("a", {}, 0), Line("b", {1: float("nan")}, 1)]) is None
    assert [line.label for line in drawn(Line("a", {}, 0), Line("b", {1: 1}, 1)).lines] == ["b"]
