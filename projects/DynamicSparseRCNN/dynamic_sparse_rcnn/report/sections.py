"""The sections of a report, each of one run or of several beside each other."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoints.runs import BEST, FINAL, LAST
from ..data.images import IMAGE_ERRORS
from .charts import Chart, Line, draw_chart
from .detections import DetectionAnalysis
from .images import LEGEND, draw_errors
from .page import Cell, DrawnImage, Section, Table
from .recorded import RecordedRun

_IMAGES_SHOWN = 6
_CURVES_SHOWN = 9
_CONFUSED_SHOWN = 40
_METRICS = ("AP", "AP50", "AP75")
# Charts: lines and the metrics that they show.
_TRAINING = {
    "Total loss": {"training": "total_loss", "validation": "validation/total_loss"},
    "AP": {name: f"bbox/{name}" for name in _METRICS},
    "AP50 of Pascal VOC": {"2007": "voc2007/AP50", "2012": "voc2012/AP50"},
    "Losses of the last stage": {name: f"loss_{name}" for name in ("ce", "bbox", "giou")},
    "Validation losses of the last stage": {name: f"validation/loss_{name}" for name in ("ce", "bbox", "giou")},
    "Learning rate": {"learning rate": "lr"},
}
_METHOD = {
    "Residual of the transport, units": ("residual", "dla/sinkhorn_residual"),
    "Recall of the initial proposals, %": ("IoU 0.5", "proposals/recall50"),
    "Temperature of the experts": ("temperature", "dpg/temperature"),
    "Entropy of the experts' weights, nats": ("entropy", "proposals/weight_entropy"),
    "Variance of the experts' weights over images": ("variance", "proposals/weight_variance"),
}


@dataclass(frozen=True)
class ReportedRun:
    """A run and what its detections are worth.

    Attributes:
        name: for people.
        run: what it has left.
        analyses: by test set.
        image_roots: what file names of a test set are relative to.
        warnings: what is missing, for people.
    """

    name: str
    run: RecordedRun
    analyses: Mapping[str, DetectionAnalysis]
    image_roots: Mapping[str, str]
    warnings: Sequence[str]


def overview(runs: Sequence[ReportedRun]) -> Section:
    """What each run is, how far it is, and the commands to continue with."""
    facts = [_facts(one.run) for one in runs]
    names = dict.fromkeys(name for own in facts for name in own)
    rows = [[name, *(own.get(name, "–") for own in facts)] for name in names]
    return Section(
        "Overview",
        notes=[f"{one.name}: {warning}." for one in runs for warning in one.warnings],
        tables=[Table("Runs", ["", *(one.name for one in runs)], rows)],
        commands=[line for one in runs for line in next_commands(one)],
    )


def _facts(run: RecordedRun) -> dict[str, str]:
    facts = {"folder": str(run.folder)}
    if run.iterations:
        facts["iterations logged"] = f"{run.iterations} of {run.max_iter or '?'}"
    for label in _METRICS:
        metric = f"bbox/{label}"
        for name, curve in run.find_curves(metric).items():
            best = max(curve, key=lambda i: (not math.isnan(curve[i]), curve[i]))
            # The last evaluation is logged as one of the iteration that does not come any more.
            iterations = min(best + 1, run.iterations or best)
            last = list(curve.values())[-1]
            facts[f"{label} {name.removesuffix(metric)}"] = (
                f"{_number(last)}; best {_number(curve[best])}, iteration {iterations}"
            )
    if run.evaluations:
        facts["detections"] = f"of the {'best' if run.evaluations[0].is_best else 'last'} evaluation"
    if times := run.curves.get("time"):
        facts["seconds an iteration"] = f"{statistics.median(times.values()):.3g}"
    return facts


def next_commands(one: ReportedRun) -> Iterator[str]:
    """What to do with a run: resume it, or use its detector, at the score threshold that was best."""
    run, folder = one.run, shlex.quote(one.run.folder.as_posix())
    last = run.folder / LAST
    # A run that has stopped early is done.
    if last.is_file() and last.read_text().strip() != FINAL and run.iterations < (run.max_iter or 0):
        yield f"dsrcnn train --resume --output {folder}"
    if any(run.folder.glob("model_*.pth")):
        # Of the checkpoint that the folder stands for.
        is_known = all(evaluation.is_best == (run.folder / BEST).is_file() for evaluation in run.evaluations)
        best = next((analysis.total.best for analysis in one.analyses.values() if is_known), None)
        threshold = f" --score-threshold {math.floor(1000 * best.threshold) / 1000:g}" if best else ""
        yield f"dsrcnn predict photos/ --weights {folder}{threshold}"
        yield from (f"dsrcnn eval {folder} --data {shlex.quote(name)}" for name in run.test_sets)
        yield f"dsrcnn export {folder} --output {shlex.quote((run.folder / 'model.onnx').as_posix())}{threshold}"


def training(runs: Sequence[ReportedRun]) -> Section:
    """Losses, learning rate and AP over time."""
    return Section("Training", charts=[_draw_curves(title, runs, metrics) for title, metrics in _TRAINING.items()])


def method(runs: Sequence[ReportedRun]) -> Section:
    """What the head's stages, label assignment and dynamic proposals do."""
    prefix = "dla/positives_per_gt_"
    positives = {name for one in runs for name in one.run.curves if name.startswith(prefix)}
    stages = {name.removeprefix(prefix).replace("_", " "): name for name in sorted(positives)}
    tables = [
        Table(
            f"AP after each stage of {one.name}",
            ["", *_METRICS],
            [[f"stage {n}", *(_number(s[name]) for name in _METRICS)] for n, s in enumerate(evaluation.stages, 1)],
            f"Test set: {evaluation.dataset}",
        )
        for one in runs
        for evaluation in one.run.evaluations
        if evaluation.stages
    ]
    notes = [] if tables else ["AP after each stage: dsrcnn report --evaluate."]
    charts = [_draw_curves("Positives of each object, by stage", runs, stages)]
    # Without experts, nothing but zeros is logged of them.
    charts += [
        _draw_curves(title, runs, {label: metric})
        for title, (label, metric) in _METHOD.items()
        if any(any(curve.values()) for one in runs for curve in one.run.find_curves(metric).values())
    ]
    return Section("Stages, label assignment and proposals", notes=notes, tables=tables, charts=charts)


def data(runs: Sequence[ReportedRun]) -> Section:
    """What the runs found in their data sets."""
    return Section("Data", texts={name: text for one in runs for name, text in one.run.datasets.items()})


def detections(title: str, dataset: str, runs: Sequence[ReportedRun]) -> Section:
    """What the detections on a test set are worth; of one run also what is confused and missed."""
    found = [(one.name, one.analyses[dataset]) for one in runs if dataset in one.analyses]
    names = [name for name in found[0][1].metrics if not name.startswith("AP-")]
    metrics = [[run, *(_number(analysis.metrics[name]) for name in names)] for run, analysis in found]
    section = Section(
        title,
        notes=[f"Test set: {dataset}"],
        tables=[Table("COCO's metrics, %", ["", *names], metrics), _class_table(found), _size_table(found)],
        charts=[_precision_by_iou(found)],
    )
    if len(runs) == 1:
        analysis = found[0][1]
        section.charts.append(_precision_by_class(analysis))
        section.tables.append(_confusion_table(analysis))
        _add_images(section, analysis, runs[0].image_roots.get(dataset, ""))
    return section


Found = Sequence[tuple[str, DetectionAnalysis]]


def _class_table(found: Found) -> Table:
    rows = []
    by_run = [(run, {one.name: one for one in (analysis.total, *analysis.classes)}) for run, analysis in found]
    for name in dict.fromkeys(name for _, classes in by_run for name in classes):
        for run, one in [(run, classes[name]) for run, classes in by_run if name in classes]:
            points = ["–"] * 4
            if best := one.best:
                points = [f"{value:.3f}" for value in (best.threshold, best.precision, best.recall, best.f1)]
            aps = map(_number, (one.ap, one.ap50, one.ap75))
            rows.append([_label(name, run, found), f"{one.objects}", *aps, *points])
    note = "The best threshold is the score with the highest F1 at an IoU of 0.5; what follows is at this threshold."
    header = ["class", "objects", *_METRICS, "best threshold", "precision", "recall", "F1"]
    return Table("Classes", header, rows, note)


def _size_table(found: Found) -> Table:
    rows = [
        [_label(size.name, run, found), f"{size.objects}", *map(_number, (size.ap, size.ap50, size.recall))]
        for index in range(3)
        for run, size in [(run, analysis.sizes[index]) for run, analysis in found]
    ]
    note = "Small objects have an area below 32² pixels of the original image, large ones one above 96²."
    return Table("Sizes", ["size", "objects", "AP", "AP50", "average recall"], rows, note)


def _label(name: str, run: str, found: Found) -> str:
    return name if len(found) == 1 else f"{name}: {run}"


def _precision_by_iou(found: Found) -> Chart | None:
    lines = [
        _line(_label(f"IoU {iou}", run, found), _precisions(analysis, index), number, order, len(found))
        for number, (run, analysis) in enumerate(found)
        for order, (index, iou) in enumerate([(0, "0.50"), (5, "0.75"), (8, "0.90")])
    ]
    return draw_chart("Precision, mean of the classes", lines, "recall", limits=(0, 1.02))


def _precision_by_class(analysis: DetectionAnalysis) -> Chart | None:
    largest = sorted(range(len(analysis.classes)), key=lambda k: -analysis.classes[k].objects)[:_CURVES_SHOWN]
    lines = [Line(analysis.classes[k].name, _precisions(analysis, 0, [k]), color) for color, k in enumerate(largest)]
    return draw_chart("Precision by class, IoU 0.50", lines, "recall", limits=(0, 1.02))


def _precisions(analysis: DetectionAnalysis, iou: int, classes: Sequence[int] | None = None) -> dict[float, float]:
    """By recall, the mean of those classes that have objects."""
    curves = analysis.precisions[iou] if classes is None else analysis.precisions[iou][:, classes]
    curves = curves[:, (curves > -1).all(axis=0)]
    means = curves.mean(axis=1).tolist() if curves.size else []
    return dict(zip(analysis.recalls.tolist(), means, strict=False))


def _confusion_table(analysis: DetectionAnalysis) -> Table:
    """Rows are shaded by the share of their sum."""
    names, matrix = [*(one.name for one in analysis.classes), "no object"], analysis.confusion
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    worst = np.argsort(-wrong[:-1], kind="stable")[:_CONFUSED_SHOWN]
    shown = [*sorted(worst.tolist()), len(names) - 1]
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    rows = [[names[i], *(Cell(str(matrix[i, j]), float(shares[i, j])) for j in shown)] for i in shown]
    note = (
        "At the best threshold of all classes and an IoU of 0.5. Rows: what there is; columns: what it is found as. "
        "The last row counts false detections, the last column missed objects."
    )
    if len(shown) < len(names):
        note += f" Of {len(names) - 1} classes those with the most errors are shown."
    return Table("Confusion matrix", ["", *(names[j] for j in shown[:-1]), "missed"], rows, note)


def _add_images(section: Section, analysis: DetectionAnalysis, image_root: str) -> None:
    names = [one.name for one in analysis.classes]
    for heading, kind in (("Most missed objects", "missed"), ("Most false detections", "false")):
        worst = sorted(analysis.images, key=lambda errors: -len(getattr(errors, kind)))[:_IMAGES_SHOWN]
        drawn: list[DrawnImage] = []
        failed: list[str] = []
        for errors in worst:
            if getattr(errors, kind):
                try:
                    drawn.append(draw_errors(errors, names, image_root))
                except IMAGE_ERRORS as error:
                    failed.append(f"{errors.file_name}: {str(error) or repr(error)}")
        if drawn:
            section.images[heading] = drawn
        if failed:
            section.notes.append(f"{heading}: {len(failed)} images cannot be drawn, first {failed[0]}")

    if section.images:
        section.notes.append(f"Images are drawn at the best threshold of all classes. {LEGEND}.")


def configuration(runs: Sequence[ReportedRun]) -> Section:
    """What was asked for and where it ran; of several runs, first what they differ in."""
    section = Section("Configuration")
    if len(runs) > 1:
        keys = sorted({key for one in runs for key in one.run.config})
        values = ([key, *(str(one.run.config.get(key, "–")) for one in runs)] for key in keys)
        rows = [row for row in values if len(set(row[1:])) > 1]
        section.tables.append(Table("What differs", ["key", *(one.name for one in runs)], rows))
    for one in runs:
        section.texts[f"config.yaml of {one.name}"] = one.run.config_text
        section.texts[f"Versions and machine of {one.name}"] = one.run.environment
    return section


def _draw_curves(title: str, runs: Sequence[ReportedRun], metrics: Mapping[str, str]) -> Chart | None:
    """What the runs logged as some metrics, of each test set where there are several."""
    lines: list[Line] = []
    for number, one in enumerate(runs):
        own = [
            (": ".join(filter(None, [name.removesuffix(metric).rstrip("/"), label])), curve)
            for label, metric in metrics.items()
            for name, curve in one.run.find_curves(metric).items()
        ]
        for index, (label, curve) in enumerate(own):
            lines.append(_line(label if len(runs) == 1 else f"{one.name}: {label}", curve, number, index, len(runs)))
    return draw_chart(title, lines)


def _line(label: str, points: Mapping[Any, float], run: int, index: int, num_runs: int) -> Line:
    """Of one run, lines differ in color; of several, runs do, and lines of a run in their dashes."""
    return Line(label, points, run, index) if num_runs > 1 else Line(label, points, index)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"
