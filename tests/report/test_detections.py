"""What saved detections are worth, against detectron2's evaluator, evaluations of part of them, and hand-made cases."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import COCOEvaluator, _evaluate_predictions_on_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dynamic_sparse_rcnn.report.detections import DetectionAnalysis, analyze_detections

NAMES = ("ant", "bee", "cat", "dog")
IDS = (4, 7, 9, 11)


def ground_truth(boxes: Sequence[tuple[int, int, Sequence[float], int]], images: int) -> dict[str, Any]:
    """Args: boxes: image, class, xywh and whether it is a crowd."""
    annotations = [
        {"id": i, "image_id": image, "category_id": IDS[label], "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for i, (image, label, box, crowd) in enumerate(boxes, 1)
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 300, "height": 300} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in zip(IDS, NAMES, strict=True)],
        "annotations": annotations,
        "info": {},
    }


def detection(image: int, label: int, box: Sequence[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": IDS[label], "bbox": box, "score": score}


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of all sizes and some crowds, no dog; detections near them, some of another class, some of nothing."""
    rng = np.random.default_rng(seed)
    boxes: list[tuple[int, int, list[float], int]] = []
    found = []
    for image in range(1, 9):
        for _ in range(rng.integers(0, 8)):
            side = float(rng.choice([12, 50, 120]))
            box = [*rng.uniform(0, 170, 2).tolist(), side, side * rng.uniform(0.6, 1.4)]
            label = int(rng.integers(3))
            boxes.append((image, label, box, int(rng.random() < 0.1)))
            for _ in range(rng.integers(0, 4)):
                moved = (np.array(box) + rng.normal(0, 0.12 * side, 4)).clip(1).tolist()
                found_as = label if rng.random() < 0.7 else int(rng.integers(4))
                found.append(detection(image, found_as, moved, round(rng.random(), 2)))
        found.append(detection(image, int(rng.integers(4)), [*rng.uniform(0, 200, 2), 30, 30], float(rng.random())))
    return ground_truth(boxes, 8), found


def write(folder: Path, truth: dict[str, Any], found: list[dict[str, Any]]) -> tuple[Path, Path]:
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    return paths


def analyze(folder: Path, truth: dict[str, Any], found: list[dict[str, Any]]) -> DetectionAnalysis:
    analysis = analyze_detections(*write(folder, truth, found))
    assert analysis is not None
    return analysis


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_detectron2s_evaluator(tmp_path: Path, seed: int) -> None:
    truth, found = random_case(seed)
    analysis = analyze(tmp_path, truth, found)
    name = str(tmp_path)
    MetadataCatalog.get(name).set(json_file=str(tmp_path / "truth.json"), thing_classes=list(NAMES))
    evaluator = COCOEvaluator(name, output_dir=None)
    with contextlib.redirect_stdout(None):
        evaluation = _evaluate_predictions_on_coco(COCO(str(tmp_path / "truth.json")), found, "bbox")
        expected = evaluator._derive_coco_results(evaluation, "bbox", class_names=list(NAMES))
    assert analysis.metrics == pytest.approx(expected, nan_ok=True)
    assert 5 < analysis.metrics["AP"] < 95 and np.isnan(analysis.metrics["AP-dog"])
    assert [one.ap for one in analysis.classes] == pytest.approx([expected[f"AP-{n}"] for n in NAMES], nan_ok=True)
    assert analysis.total.ap == pytest.approx(expected["AP"])
    assert (analysis.total.ap50, analysis.total.ap75) == pytest.approx((expected["AP50"], expected["AP75"]))
    assert [size.ap for size in analysis.sizes] == pytest.approx([expected[f"AP{s}"] for s in "sml"])


def counts_above(threshold: float, truth: Path, found: list[dict[str, Any]], label: int | None) -> tuple[int, int, int]:
    """Right and false detections, and missed objects, of an evaluation of nothing but what is above the threshold."""
    with contextlib.redirect_stdout(None):
        coco = COCO(str(truth))
        kept = [d for d in found if d["score"] >= threshold]
        evaluation = COCOeval(coco, coco.loadRes(kept), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.catIds = list(IDS) if label is None else [IDS[label]]
        evaluation.evaluate()
    images = [image for image in evaluation.evalImgs if image is not None]
    right = sum(int(((image["dtMatches"] > 0) & ~image["dtIgnore"]).sum()) for image in images)
    false = sum(int(((image["dtMatches"] == 0) & ~image["dtIgnore"]).sum()) for image in images)
    return right, false, sum(int((np.array(image["gtIgnore"]) == 0).sum()) for image in images) - right


@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_the_best_threshold_has_the_best_f1_of_all_thresholds(tmp_path: Path, label: int | None) -> None:
    truth, found = random_case(0)
    analysis = analyze(tmp_path, truth, found)
    best = (analysis.total if label is None else analysis.classes[label]).best
    f1 = {}
    for threshold in sorted({d["score"] for d in found}):
        right, false, missed = counts_above(threshold, tmp_path / "truth.json", found, label)
        f1[threshold] = 2 * right / (2 * right + false + missed)
    assert best is not None
    assert best.f1 == pytest.approx(max(f1.values())) and f1[best.threshold] == max(f1.values())
    right, false, missed = counts_above(best.threshold, tmp_path / "truth.json", found, label)
    assert (best.precision, best.recall) == pytest.approx((right / (right + false), right / (right + missed)))


@pytest.mark.parametrize("seed", range(3))
def test_the_confusion_matrix_adds_up_to_objects_and_detections(tmp_path: Path, seed: int) -> None:
    truth, found = random_case(seed)
    analysis = analyze(tmp_path, truth, found)
    assert analysis.total.best is not None
    threshold = analysis.total.best.threshold
    assert analysis.confusion[:-1].sum(1).tolist() == [one.objects for one in analysis.classes]
    for label in range(len(NAMES)):
        right, false, _ = counts_above(threshold, tmp_path / "truth.json", found, label)
        assert analysis.confusion[label, label] == right
        assert analysis.confusion[:, label].sum() == right + false
    assert sum(len(image.missed) for image in analysis.images) == (
        analysis.confusion[:-1].sum() - analysis.confusion.diagonal()[:-1].sum()
    )


BOX, MOVED, ELSEWHERE, SMALL = [10, 10, 100, 100], [15, 10, 100, 100], [180, 180, 100, 100], [150, 10, 20, 20]


def test_right_confused_false_and_missed_boxes_of_an_image(tmp_path: Path) -> None:
    truth = ground_truth(
        [(1, 0, BOX, 0), (1, 1, ELSEWHERE, 0), (1, 2, SMALL, 0), (2, 0, BOX, 0), (2, 1, ELSEWHERE, 1)], images=3
    )
    found = [
        detection(1, 0, MOVED, 0.9),  # right
        detection(1, 2, ELSEWHERE, 0.8),  # a bee taken for a cat
        detection(2, 0, BOX, 0.9),  # right
        detection(2, 3, BOX, 0.85),  # a second, false one, on an object that has been found
        detection(2, 1, [190, 190, 30, 30], 0.95),  # in a crowd: counts neither way
        detection(3, 1, BOX, 0.7),  # below the best threshold
    ]
    analysis = analyze(tmp_path, truth, found)
    assert analysis.total.best is not None
    assert (analysis.total.best.threshold, analysis.total.objects) == (0.9, 4)
    assert analysis.confusion.tolist() == [
        [2, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    one, two, three = analysis.images
    assert [(box.label, box.xyxy) for box in one.right] == [(0, (15, 10, 115, 110))]
    assert [(box.label, box.xyxy) for box in one.missed] == [(1, (180, 180, 280, 280)), (2, (150, 10, 170, 30))]
    assert (len(two.right), two.false, two.missed) == (1, (), ())
    assert (three.right, three.false, three.missed) == ((), (), ())


def test_a_wrong_class_is_confused_and_a_detection_of_nothing_is_false(tmp_path: Path) -> None:
    truth = ground_truth([(1, 0, BOX, 0), (1, 1, ELSEWHERE, 0), (2, 2, BOX, 0), (2, 2, ELSEWHERE, 0)], images=2)
    found = [
        detection(1, 2, MOVED, 0.99),
        detection(1, 1, SMALL, 0.98),
        detection(1, 1, ELSEWHERE, 0.5),
        detection(2, 2, BOX, 0.5),
        detection(2, 2, ELSEWHERE, 0.5),
    ]
    analysis = analyze(tmp_path, truth, found)
    assert analysis.confusion.tolist() == [
        [0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 2, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
    ]
    assert [(box.label, box.score) for box in analysis.images[0].false] == [(2, 0.99), (1, 0.98)]


def test_sizes_are_counted_by_the_area_of_the_objects(tmp_path: Path) -> None:
    sides = [10, 20, 40, 90, 130, 140, 150]
    truth = ground_truth([(1, 0, [0, 0, side, side], 0) for side in sides], images=1)
    analysis = analyze(tmp_path, truth, [detection(1, 0, [0, 0, side, side], 0.5) for side in sides[:4]])
    assert [(size.name, size.objects) for size in analysis.sizes] == [("small", 2), ("medium", 2), ("large", 3)]
    assert [size.recall for size in analysis.sizes] == [100, 100, 0]


def test_without_detections_there_is_nothing_to_analyze(tmp_path: Path) -> None:
    assert analyze_detections(*write(tmp_path, ground_truth([(1, 0, BOX, 0)], 1), [])) is None
