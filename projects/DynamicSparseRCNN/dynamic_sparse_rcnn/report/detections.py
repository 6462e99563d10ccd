"""What saved detections are worth: COCO's evaluation by class and size, thresholds, confusions, errors by image.

All of it follows from the matches that pycocotools makes of detections and ground truths.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_IOU50, _IOU75 = 0, 5  # positions among COCO's IoUs


@dataclass(frozen=True)
class OperatingPoint:
    """What becomes of the detections with a score of at least ``threshold``, at an IoU of 0.5."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-9)


@dataclass(frozen=True)
class ClassResult:
    """A class, or all of them.

    Attributes:
        name: of the class.
        objects: number of ground truths, crowds not counted.
        ap: mean over the IoUs 0.50 to 0.95, in percent, as the next two; NaN without objects.
        ap50: at an IoU of 0.5.
        ap75: at an IoU of 0.75.
        best: the threshold with the best F1; None without objects or detections.
    """

    name: str
    objects: int
    ap: float
    ap50: float
    ap75: float
    best: OperatingPoint | None


@dataclass(frozen=True)
class SizeResult:
    """Objects of a size in COCO's sense: their number; AP, AP50 and average recall in percent."""

    name: str
    objects: int
    ap: float
    ap50: float
    recall: float


@dataclass(frozen=True)
class Box:
    """A ground truth or a detection: absolute xyxy pixels of the image, class index, and a detection's score."""

    xyxy: tuple[float, float, float, float]
    label: int
    score: float


@dataclass(frozen=True)
class ImageErrors:
    """The boxes of an image at the best threshold of all classes: right and false detections, missed objects."""

    file_name: str
    right: tuple[Box, ...]
    false: tuple[Box, ...]
    missed: tuple[Box, ...]


@dataclass(frozen=True)
class DetectionAnalysis:
    """What the detections on a test set are worth.

    Attributes:
        metrics: those of detectron2's ``COCOEvaluator``, in percent.
        total: all K classes together; AP is the mean over them, the best threshold is one for all of them.
        classes: each class.
        sizes: small, medium and large objects.
        recalls: (R,) for which precisions are given.
        precisions: (T, R, K) at the IoUs 0.50 to 0.95; -1 for classes without objects.
        confusion: (K + 1, K + 1) number of objects of the row's class found as the column's, at the best threshold of
            all classes; in the last row false detections, in the last column missed objects.
        images: all images.
    """

    metrics: dict[str, float]
    total: ClassResult
    classes: tuple[ClassResult, ...]
    sizes: tuple[SizeResult, ...]
    recalls: Array
    precisions: Array
    confusion: Integers
    images: tuple[ImageErrors, ...]


def analyze_detections(json_file: str | Path, results_file: str | Path) -> DetectionAnalysis | None:
    """Evaluates saved detections; None if there are none.

    Args:
        json_file: the ground truth, a COCO annotation file.
        results_file: the detections, in COCO's result format.
    """
    results = json.loads(Path(results_file).read_text())
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        return _analyze(COCO(str(json_file)), results) if results else None


def _analyze(truth: COCO, results: list[dict[str, Any]]) -> DetectionAnalysis:
    evaluation = _evaluate(truth, truth.loadRes(results))
    evaluation.accumulate()
    evaluation.summarize()
    matches = _Matches.of(evaluation)
    precisions = evaluation.eval["precision"][..., 0, -1]
    total = _class_result("all", matches, precisions, slice(None))
    names = [category["name"] for category in truth.loadCats(evaluation.params.catIds)]
    classes = [_class_result(name, matches, precisions, [k]) for k, name in enumerate(names)]
    metrics = {name: _percent([value]) for name, value in zip(_METRICS, evaluation.stats, strict=False)}
    if len(names) > 1:
        metrics |= {f"AP-{one.name}": one.ap for one in classes}
    threshold = total.best.threshold if total.best else np.inf
    return DetectionAnalysis(
        metrics=metrics,
        total=total,
        classes=tuple(classes),
        sizes=tuple(_size_result(evaluation, index) for index in (1, 2, 3)),
        recalls=evaluation.params.recThrs,
        precisions=precisions,
        confusion=_confusion(evaluation, matches, threshold),
        images=_image_errors(evaluation, matches, threshold),
    )


def _evaluate(truth: COCO, detections: COCO, **params: Any) -> COCOeval:
    """pycocotools' own evaluation: detectron2's faster one keeps no matches."""
    evaluation = COCOeval(truth, detections, "bbox")
    vars(evaluation.params).update(params)
    evaluation.evaluate()
    return evaluation


@dataclass(frozen=True)
class _Matches:
    """COCO's matches at an IoU of 0.5, without what it ignores, such as crowds.

    Attributes:
        scores: (N,) of detections, best first.
        labels: (N,) class indices.
        ids: (N,) of the detections.
        found: (N,) ids of the objects that they find; 0: none.
        objects: (M,) ids of all objects.
        object_labels: (M,) class indices.
    """

    scores: Array
    labels: Integers
    ids: Integers
    found: Integers
    objects: Integers
    object_labels: Integers

    @classmethod
    def of(cls, evaluation: COCOeval) -> _Matches:
        params = evaluation.params
        labels = {category: k for k, category in enumerate(params.catIds)}
        detections, objects = [np.zeros((0, 4))], [np.zeros((0, 2))]
        for entry in evaluation.evalImgs:
            if entry is None or entry["aRng"] != params.areaRng[0]:
                continue
            label = labels.get(entry["category_id"], -1)
            columns = entry["dtScores"], entry["dtIds"], entry["dtMatches"][_IOU50], [label] * len(entry["dtIds"])
            detections.append(np.array(columns).T[~entry["dtIgnore"][_IOU50].astype(bool)])
            objects.append(np.array([entry["gtIds"], [label] * len(entry["gtIds"])]).T[entry["gtIgnore"] == 0])
        table = np.concatenate(detections)
        scores, ids, found, own = table[np.argsort(-table[:, 0], kind="stable")].T
        truth = np.concatenate(objects).astype(np.int64)
        return cls(scores, *(column.astype(np.int64) for column in (own, ids, found)), *truth.T)

    def missed(self, threshold: float) -> npt.NDArray[np.bool_]:
        """(M,) whether no detection with at least this score finds the object."""
        return ~np.isin(self.objects, self.found[self.scores >= threshold])


def _class_result(name: str, matches: _Matches, precisions: Array, labels: list[int] | slice) -> ClassResult:
    chosen = np.arange(precisions.shape[2])[labels]
    own, objects = np.isin(matches.labels, chosen), int(np.isin(matches.object_labels, chosen).sum())
    best = _best_point(matches.scores[own], matches.found[own] > 0, objects)
    ap, ap50, ap75 = (_percent(p[..., labels]) for p in (precisions, precisions[_IOU50], precisions[_IOU75]))
    return ClassResult(name, objects, ap, ap50, ap75, best)


def _best_point(scores: Array, right: npt.NDArray[np.bool_], objects: int) -> OperatingPoint | None:
    """Of the detections with at least each of the sorted scores, those with the best F1."""
    if not (objects and len(scores)):
        return None
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # equal scores stay together
    hits, counts = np.cumsum(right)[ends], ends + 1
    best = np.argmax(2 * hits / (counts + objects))
    return OperatingPoint(float(scores[ends[best]]), float(hits[best] / counts[best]), float(hits[best] / objects))


def _size_result(evaluation: COCOeval, index: int) -> SizeResult:
    params = evaluation.params
    own = [entry for entry in evaluation.evalImgs if entry is not None and entry["aRng"] == params.areaRng[index]]
    objects = sum(not ignored for entry in own for ignored in entry["gtIgnore"])
    precision, recall = (evaluation.eval[key][..., index, -1] for key in ("precision", "recall"))
    return SizeResult(
        params.areaRngLbl[index], objects, _percent(precision), _percent(precision[_IOU50]), _percent(recall)
    )


def _confusion(evaluation: COCOeval, matches: _Matches, threshold: float) -> Integers:
    """What is right has been matched within its class; what is left is matched whatever its class."""
    background = len(evaluation.params.catIds)
    confusion = np.zeros((background + 1, background + 1), dtype=np.int64)
    kept, missed = matches.scores >= threshold, matches.missed(threshold)
    right, false = kept & (matches.found > 0), kept & (matches.found == 0)
    np.add.at(confusion, (matches.labels[right], matches.labels[right]), 1)
    rest = _Matches.of(
        _evaluate(
            _part(evaluation.cocoGt, matches.objects[missed]),
            _part(evaluation.cocoDt, matches.ids[false]),
            useCats=0,
            areaRng=evaluation.params.areaRng[:1],
            maxDets=[int(false.sum())],
        )
    )
    classes = dict(zip(matches.ids.tolist(), matches.labels.tolist(), strict=True))
    lost = dict(zip(matches.objects[missed].tolist(), matches.object_labels[missed].tolist(), strict=True))
    for detection, found in zip(rest.ids.tolist(), rest.found.tolist(), strict=True):
        confusion[lost.pop(found, background), classes[detection]] += 1
    np.add.at(confusion[:, background], list(lost.values()), 1)
    return confusion


def _part(coco: COCO, ids: Integers) -> COCO:
    """The same images with some of the annotations."""
    part = COCO()
    part.dataset = {**coco.dataset, "annotations": coco.loadAnns(ids.tolist())}
    part.createIndex()
    return part


def _image_errors(evaluation: COCOeval, matches: _Matches, threshold: float) -> tuple[ImageErrors, ...]:
    boxes: dict[int, tuple[list[Box], list[Box], list[Box]]] = {i: ([], [], []) for i in evaluation.params.imgIds}

    def add(kind: int, annotation: dict[str, Any], label: int) -> None:
        x, y, width, height = annotation["bbox"]
        box = Box((x, y, x + width, y + height), label, annotation.get("score", 1.0))
        boxes[annotation["image_id"]][kind].append(box)

    for i in np.flatnonzero(matches.scores >= threshold):
        add(int(matches.found[i] == 0), evaluation.cocoDt.anns[int(matches.ids[i])], int(matches.labels[i]))
    for i in np.flatnonzero(matches.missed(threshold)):
        add(2, evaluation.cocoGt.anns[int(matches.objects[i])], int(matches.object_labels[i]))
    names = {image: evaluation.cocoGt.imgs[image]["file_name"] for image in boxes}
    return tuple(ImageErrors(names[image], *map(tuple, own)) for image, own in boxes.items())


def _percent(values: npt.ArrayLike) -> float:
    """The mean of those that are defined, in percent."""
    array = np.asarray(values)
    defined = array[array > -1]
    return 100 * float(defined.mean()) if defined.size else float("nan")
