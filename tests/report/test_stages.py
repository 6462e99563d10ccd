"""AP after each stage of the head, from one pass over the test set."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from pages import Page

from dynamic_sparse_rcnn.data.ground_truth import ensure_coco_json
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.report.stages import StageEvaluator, evaluate_run
from dynamic_sparse_rcnn.report.writing import write_report


def test_each_stage_is_evaluated_as_a_detector_that_ends_with_it(
    tiny_cfg: CfgNode, shapes: str, tmp_path: Path
) -> None:
    tiny_cfg.MODEL.SparseRCNN.NUM_HEADS, tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = 3, 5
    tiny_cfg.INPUT.MIN_SIZE_TEST = 64
    ensure_coco_json(shapes, str(tmp_path))
    detector = build_model(tiny_cfg).eval()
    with torch.no_grad():  # boxes of their own for each stage, so that something is found
        for stage in detector.head.head_series:
            stage.bboxes_delta.weight.normal_(std=0.02)
    mapper = DetectionMapper(tiny_cfg, is_train=False)
    batch = [mapper(record) for record in DatasetCatalog.get(shapes)]

    def evaluate(evaluator: Any) -> Any:
        evaluator.reset()
        with torch.no_grad(), contextlib.redirect_stdout(None):
            for start in (0, 4):
                part = batch[start : start + 4]
                evaluator.process(part, detector(part))
            return evaluator.evaluate()

    found: list[list[dict[str, Any]]] = []

    class Recorder(COCOEvaluator):
        def evaluate(self, img_ids: object = None) -> Any:
            found.append([entry for prediction in self._predictions for entry in prediction["instances"]])
            return super().evaluate()

    stages = evaluate(StageEvaluator(detector, partial(Recorder, shapes)))["stages"]
    assert len(stages) == 3 and len(found) == 3
    series = detector.head.head_series
    for number in (3, 2, 1):
        detector.head.head_series = series[:number]
        alone = evaluate(Recorder(shapes, output_dir=None))["bbox"]
        assert alone == pytest.approx(stages[number - 1]["bbox"], nan_ok=True)
        assert found[-1] == found[number - 1]
    assert found[0] != found[1] != found[2]
    assert not detector.head._forward_hooks


def test_the_report_of_a_run_without_detections_can_evaluate_it(run: Callable[..., Any], tmp_path: Path) -> None:
    run("TEST.EVAL_PERIOD", "0")
    folder = tmp_path / "run"
    results = folder / "inference_best/coco_instances_results.json"
    expected = json.loads(results.read_text())
    results.unlink()
    evaluate_run(folder)
    key = ("image_id", "score")
    assert sorted(json.loads(results.read_text()), key=lambda d: [d[k] for k in key]) == [
        {**entry, "bbox": pytest.approx(entry["bbox"], abs=1e-3), "score": pytest.approx(entry["score"], abs=1e-5)}
        for entry in sorted(expected, key=lambda d: [d[k] for k in key])
    ]
    page = Page.read(write_report(folder))
    (table,) = [rows for caption, rows in page.tables.items() if caption.startswith("AP after each stage")]
    assert [row[0] for row in table[1:]] == ["stage 1", "stage 2", "stage 3"]
    assert table[-1][1:] == page.tables["COCO's metrics, %"][1][1:4]
