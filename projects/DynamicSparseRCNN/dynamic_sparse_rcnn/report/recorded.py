"""What a run has left in its folder, whole or killed in the middle, from either kind of config."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints.runs import BEST_DETECTIONS, LAST_DETECTIONS
from ..data.ground_truth import file_stem

RESULTS, STAGES = "coco_instances_results.json", "stages.json"

#: A scalar by iteration.
Curve = dict[int, float]

# The table that detectron2 logs when a run starts.
_ENVIRONMENT = re.compile(r"Environment(?: info)?:\n(-+ +-+\n.*?\n-+ +-+)$", re.MULTILINE | re.DOTALL)
# What a run finds in its data, logged too.
_DATASET = re.compile(r"Data set (.+)\n((?:  .+\n?)+)")
# In yaml configs and in lazy ones, which may have a list of test sets.
_TEST_SETS = re.compile(r"DATASETS\.TEST|dataloader\.test\.(\d+\.)?dataset\.name")


@dataclass(frozen=True)
class RecordedEvaluation:
    """The detections of a test set's best evaluation, or of the last.

    Attributes:
        dataset: name of the test set.
        results_file: the detections, in COCO's result format.
        is_best: whether they are those of the best checkpoint.
        stages: metrics after each stage, where they have been evaluated.
    """

    dataset: str
    results_file: Path
    is_best: bool = False
    stages: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class RecordedRun:
    """A run's folder.

    Attributes:
        folder: where it is.
        curves: what was logged, by name.
        config_text: the ``config.yaml``; empty if there is none.
        config: its values by their full keys.
        environment: versions of the software, as the run logged them; empty if it did not.
        datasets: what the run found in its data sets, by their names.
        evaluations: one for each test set with saved detections.
        warnings: what could not be read, for people.
    """

    folder: Path
    curves: Mapping[str, Curve]
    config_text: str
    config: Mapping[str, Any]
    environment: str
    datasets: Mapping[str, str]
    evaluations: tuple[RecordedEvaluation, ...]
    warnings: tuple[str, ...] = ()

    @property
    def test_sets(self) -> tuple[str, ...]:
        """Names of the data sets that it is evaluated on."""
        return _names(self.config, _TEST_SETS)

    @property
    def max_iter(self) -> int | None:
        """Number of iterations that the config asks for."""
        return self.config.get("SOLVER.MAX_ITER", self.config.get("train.max_iter"))

    @property
    def iterations(self) -> int:
        """Number of iterations that were logged."""
        losses = self.curves.get("total_loss")
        return max(losses) + 1 if losses else 0

    def find_curves(self, metric: str) -> dict[str, Curve]:
        """Those of a metric by their whole names: before ``<task>/<metric>`` may stand the name of a test set."""
        end = f"/{metric}" if "/" in metric else None
        return {name: curve for name, curve in self.curves.items() if name == metric or (end and name.endswith(end))}


def read_run(folder: str | Path) -> RecordedRun:
    """Reads what a run has left."""
    folder = Path(folder)
    metrics, config_file, log = (folder / name for name in ("metrics.json", "config.yaml", "log.txt"))
    config_text = config_file.read_text(encoding="utf-8") if config_file.is_file() else ""
    config, warnings = _read_config(config_text)
    curves, damaged = _read_curves(metrics) if metrics.is_file() else ({}, 0)
    if damaged:
        warnings.append(f"{damaged} lines of {metrics.name} are damaged and left out")
    logged = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    evaluations = tuple(_find_evaluations(folder, _names(config, _TEST_SETS)))
    environment = "".join(_ENVIRONMENT.findall(logged)[-1:])
    datasets = {name: textwrap.dedent(text) for name, text in _DATASET.findall(logged)}
    return RecordedRun(folder, curves, config_text, config, environment, datasets, evaluations, tuple(warnings))


def _read_config(text: str) -> tuple[dict[str, Any], list[str]]:
    try:
        return dict(_leaves(yaml.safe_load(text) or {})), []
    except yaml.YAMLError as error:
        return {}, [f"config.yaml cannot be read, so that the data sets are not known: {' '.join(str(error).split())}"]


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Values by their full keys, in which sections of a list are numbered."""
    is_list = isinstance(node, list) and any(isinstance(value, Mapping) for value in node)
    if not is_list and not isinstance(node, Mapping):
        yield key, node
        return
    for name, value in enumerate(node) if is_list else node.items():
        yield from _leaves(value, f"{key}.{name}" if key else f"{name}")


def _names(config: Mapping[str, Any], keys: re.Pattern[str]) -> tuple[str, ...]:
    """The data sets that these keys name."""
    values = [value for key, value in config.items() if keys.fullmatch(key)]
    return tuple(name for value in values for name in ([value] if isinstance(value, str) else value or ()))


def _read_curves(file: Path) -> tuple[dict[str, Curve], int]:
    """All scalars, and how many lines are damaged. A run that starts again, or resumes, replaces what it repeats."""
    curves: dict[str, Curve] = {}
    damaged = 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            iteration = int(row.pop("iteration"))
        except (ValueError, KeyError, AttributeError, TypeError):
            damaged += 1
            continue
        # Lines are not sorted, but those of a scalar are.
        if any(name in curves and iteration <= next(reversed(curves[name]), -1) for name in row):
            curves = {name: {i: v for i, v in curve.items() if i < iteration} for name, curve in curves.items()}
        for name, value in row.items():
            if isinstance(value, (int, float)):
                curves.setdefault(name, {})[iteration] = float(value)
    return {name: curve for name, curve in curves.items() if curve}, damaged


def _find_evaluations(folder: Path, names: tuple[str, ...]) -> Iterator[RecordedEvaluation]:
    """Of the best checkpoint, or of the last if there is no best; of several test sets each in a folder of its own."""
    best = sorted((folder / BEST_DETECTIONS).rglob(RESULTS))
    for results in best or sorted((folder / LAST_DETECTIONS).rglob(RESULTS)):
        beside, stages = results.parent, results.with_name(STAGES)
        own = [name for name in names if (beside / f"{file_stem(name)}_coco_format.json").is_file()]
        dataset = next(iter(own or names if len(names) == 1 else own), beside.name)
        by_stage = tuple(json.loads(stages.read_text())) if stages.is_file() else ()
        yield RecordedEvaluation(dataset, results, bool(best), by_stage)
