"""Line charts as inline SVG that takes its colors from the page, so that it is readable in light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: Colors of a page, ``var(--c0)`` to ``var(--c9)``.
NUM_COLORS = 10
#: Dashes of lines, in widths of the line, as SVG writes them; the first is solid.
DASHES = ("", "5 2", "2 2", "6 2 2 2")

_SIZE = (4.6, 2.7)
_MOST_POINTS = 400
# What is drawn in these gets the page's colors.
_TEXT, _GRID = "#0a0b0c", "#0a0b0d"
_COLORS = tuple(f"#0a0c{index:02x}" for index in range(NUM_COLORS))
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "text.color": _TEXT, "axes.labelcolor": _TEXT}


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: for the legend.
        points: x and y; what is not finite is left out.
        color: number of one of the page's colors.
        dash: number of one of ``DASHES``.
    """

    label: str
    points: Mapping[float, float]
    color: int
    dash: int = 0

    @property
    def dashes(self) -> str:
        """As SVG writes them."""
        return DASHES[self.dash % len(DASHES)]


@dataclass(frozen=True)
class Chart:
    """A chart with its legend.

    Attributes:
        title: what it shows.
        svg: to be put into the page.
        lines: those that are drawn, for the legend.
    """

    title: str
    svg: Markup
    lines: tuple[Line, ...]


def draw_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str = "iteration",
    limits: tuple[float, float] | None = None,
) -> Chart | None:
    """Draws lines; None if there is nothing to draw.

    Args:
        title: of the chart.
        lines: with any number of points each.
        x_label: below the chart.
        limits: of y; default: as the points need.
    """
    drawn = [(line, _finite(line.points)) for line in lines]
    drawn = [(line, points) for line, points in drawn if len(points)]
    if not drawn:
        return None
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(xlabel=x_label)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.tick_params(color=_GRID, labelcolor=_TEXT)
        axes.spines[:].set_color(_GRID)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        for line, points in drawn:
            dashes = [float(length) for length in line.dashes.split()]
            style = (0, dashes) if dashes else "-"
            marker = "o" if len(points) == 1 else ""
            color = _COLORS[line.color % NUM_COLORS]
            axes.plot(*_thinned(points).T, color=color, linestyle=style, linewidth=1.6, marker=marker, markersize=4)
        if limits:
            axes.set_ylim(limits)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    alt = f"{title} over {x_label}. " + "; ".join(_describe(line.label, points) for line, points in drawn)
    return Chart(title, _inline(file.getvalue(), alt), tuple(line for line, _ in drawn))


def _finite(points: Mapping[float, float]) -> np.ndarray:
    """(N, 2)."""
    return np.array([(x, y) for x, y in points.items() if math.isfinite(y)], dtype=np.float64).reshape(-1, 2)


def _thinned(points: np.ndarray) -> np.ndarray:
    """Means of neighbors, where there are more points than a chart can show."""
    if len(points) <= _MOST_POINTS:
        return points
    return np.array([part.mean(axis=0) for part in np.array_split(points, _MOST_POINTS)])


def _describe(label: str, points: np.ndarray) -> str:
    (x0, y0), (x1, y1) = points[0], points[-1]
    return f"{label}: {y0:.3g} at {x0:g}, {y1:.3g} at {x1:g}"


def _inline(svg: str, alt: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    # Style and ids would be the whole page's, and the font is the page's.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|(?<=<g) id=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = svg.replace(_TEXT, "currentColor").replace(_GRID, "var(--line)")
    for index, color in enumerate(_COLORS):
        svg = svg.replace(color, f"var(--c{index})")
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None
    head = Markup('<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{}" role="img" aria-label="{}">')
    return head.format(view_box[1], alt) + Markup(svg[svg.index(">") + 1 :])
