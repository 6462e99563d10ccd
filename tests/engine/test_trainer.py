"""A run from the command line: training, checkpoints, evaluation, on a small generated set."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import yaml
from detectron2.utils import comm
from small_runs import DYNAMIC, read_metrics

from dynamic_sparse_rcnn import SparseRCNN


def test_training_writes_checkpoints_metrics_and_an_evaluation(run, tmp_path):
    run()
    folder = tmp_path / "run"
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    saved = torch.load(folder / "model_final.pth")
    assert saved["iteration"] == 3
    assert saved["class_names"] == ["circle", "square", "triangle", "star", "ring"]
    assert "init_proposal_boxes.weight" in saved["model"]
    names = set().union(*read_metrics(folder))
    assert {"total_loss", "loss_ce", "loss_giou_0", "lr", "ground_truths_without_proposal"} <= names
    assert {"bbox/AP", "bbox/AP50", "bbox/AP75"} <= names
    assert list(folder.glob("events.out.tfevents.*"))
    node = yaml.safe_load((folder / "config.yaml").read_text())["MODEL"]["SparseRCNN"]
    assert (node["NUM_CLASSES"], node["MATCHER"], node["NMS_THRESHOLD"]) == (5, "HungarianMatcher", 1.0)


def test_evaluation_without_weights_is_an_error(run):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS"):
        run("--eval-only")


def test_mixed_precision_trains_with_finite_losses_and_float32_weights(run, tmp_path, monkeypatch):
    seen = []
    predict = SparseRCNN.predict

    def spy(detector, images):
        predictions = predict(detector, images)
        seen.append((detector.training, predictions.logits.dtype, predictions.boxes.dtype))
        return predictions

    monkeypatch.setattr(SparseRCNN, "predict", spy)
    run("SOLVER.AMP.ENABLED", "True")
    assert set(seen) == {(True, torch.bfloat16, torch.float32), (False, torch.float32, torch.float32)}
    metrics = read_metrics(tmp_path / "run")
    assert all(torch.tensor(row["total_loss"]).isfinite() for row in metrics if "total_loss" in row)
    weights = torch.load(tmp_path / "run/model_final.pth")["model"]
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_the_schedule_follows_the_batch_and_the_saved_config_is_not_scaled_again(run, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run("SOLVER.REFERENCE_BATCH_SIZE", "4", "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.002")
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["SOLVER"]
    assert config["BASE_LR"] == pytest.approx(0.001)
    assert config["MAX_ITER"] == 4
    assert config["REFERENCE_BATCH_SIZE"] == config["IMS_PER_BATCH"] == 2


def test_a_dynamic_checkpoint_gives_the_training_runs_own_detections_and_diagnostics(run, tmp_path):
    run(*DYNAMIC)
    detections = tmp_path / "run/inference/coco_instances_results.json"
    trained = json.loads(detections.read_text())
    detections.unlink()
    results = run("--eval-only", *DYNAMIC, "MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"), "SEED", "7")
    evaluated = json.loads(detections.read_text())
    assert len(trained) > 20
    assert [x["score"] for x in evaluated] == pytest.approx([x["score"] for x in trained], abs=1e-5)
    assert [x["image_id"] for x in evaluated] == [x["image_id"] for x in trained]
    logged = read_metrics(tmp_path / "run")[-1]
    for name in ("recall50", "weight_entropy", "weight_variance"):
        assert logged[f"proposals/{name}"] == pytest.approx(results["proposals"][name], abs=1e-5)
    assert list(results) == ["proposals", "bbox"]


def test_the_log_has_config_environment_and_model_and_the_terminal_what_one_reads(run, tmp_path, capsys):
    run("SOLVER.MAX_ITER", "1")
    terminal, log = capsys.readouterr().out, (tmp_path / "run/log.txt").read_text()
    for text in ("BASE_LR", "PyTorch", "(proposal_generator)", "eval_only"):
        assert text in log and text not in terminal
    for text in ("total_loss", "6 images, ", "log.txt in the output folder"):
        assert text in log and text in terminal


def test_fewer_images_than_processes_are_refused_by_their_numbers(run, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH .* is 2, which 3 processes cannot share equally"):
        run("SOLVER.IMS_PER_BATCH", "2")
