"""What a benchmark of speed leaves: a table, a JSON file and a plot."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torchvision
from tabulate import tabulate

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


@dataclass(frozen=True)
class Comparison:
    """One number of several variants.

    Attributes:
        case: what it belongs to: ``detector``, ``parts``, ``method`` or ``scaling``.
        name: of the number; in ``scaling`` what grows, ``=``, and how far it has.
        unit: ms or MB.
        rounds: by variant, the number in each round of measurements; variants are related to the first.
    """

    case: str
    name: str
    unit: str
    rounds: dict[str, list[float]]

    @property
    def values(self) -> dict[str, float]:
        """The median of each variant."""
        return {variant: statistics.median(values) for variant, values in self.rounds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """The median over the rounds of each variant's ratio to the first: what slows down both does not show."""
        first = next(iter(self.rounds.values()))
        return {
            variant: statistics.median(value / other for value, other in zip(values, first, strict=True))
            for variant, values in self.rounds.items()
        }


def table(comparisons: Sequence[Comparison]) -> str:
    """One row a number and variant."""
    rows = [
        (comparison.name, f"{variant}, {comparison.unit}", value, comparison.ratios[variant])
        for comparison in comparisons
        for variant, value in comparison.values.items()
    ]
    return tabulate(rows, ("", "variant", "median", "ratio"), floatfmt=("", "", ".1f", ".3f"))


def write_report(comparisons: Sequence[Comparison], settings: dict[str, Any], folder: Path) -> None:
    """Writes ``speed.json`` and ``speed.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    device = str(settings["device"])
    on_gpu = device.startswith("cuda")
    machine = {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    entries = [asdict(x) | {"medians": x.values, "ratios": x.ratios} for x in comparisons]
    content = {"machine": machine, "settings": settings, "comparisons": entries}
    (folder / "speed.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(comparisons, folder / "speed.png")


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """A panel for each case, and one for each quantity of ``scaling``."""
    panels: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        grows = comparison.name.partition(" = ")[0] if comparison.case == "scaling" else ""
        panels.setdefault(grows or comparison.case, []).append(comparison)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5 * columns, 4 * rows), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, (title, members) in zip(grid.flat, panels.items(), strict=False):
        (_draw_lines if members[0].case == "scaling" else _draw_bars)(axes, members)
        axes.set_title(title)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_lines(axes: Axes, members: Sequence[Comparison]) -> None:
    grown = [comparison.name.partition(" = ")[2] for comparison in members]
    for variant in members[0].values:
        axes.plot(grown, [comparison.values[variant] for comparison in members], "o-", label=variant)
    axes.set_ylabel(f"training step, {members[0].unit}")
    axes.set_ylim(bottom=0)


def _draw_bars(axes: Axes, members: Sequence[Comparison]) -> None:
    """Values of parts, which have one unit and a sum; of all else ratios."""
    parts = members[0].case == "parts"
    variants = list(dict.fromkeys(variant for comparison in members for variant in comparison.values))
    height = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        shown = [(i, comparison) for i, comparison in enumerate(members) if variant in comparison.values]
        values = [c.values[variant] if parts else c.ratios[variant] for _, c in shown]
        axes.barh([i + number * height for i, _ in shown], values, height, label=variant)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(members))], [comparison.name for comparison in members])
    axes.invert_yaxis()
    axes.set_xlabel(members[0].unit if parts else f"ratio to {variants[0]}")
