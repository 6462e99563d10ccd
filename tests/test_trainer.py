"""A run from the command line: set-up, training, checkpoints, evaluation, on a small generated set."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
import train_net
import yaml
from detectron2.engine import default_argument_parser

from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/shapes/sparse_rcnn_R_18_FPN_20pro.yaml"
TINY = [
    *("DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SparseRCNN.HIDDEN_DIM", "32", "MODEL.SparseRCNN.DIM_DYNAMIC", "8"),
    *("MODEL.SparseRCNN.NUM_PROPOSALS", "6", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_BATCH_SIZE", "0"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "()", "MODEL.DEVICE", "cpu"),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("shapes")
    paths = generate_shapes(folder, "train", ShapesConfig(num_images=6, image_size=64))
    return f"coco:{paths.json_path}:{paths.image_folder}"


@pytest.fixture
def run(shapes, tmp_path):
    """Runs ``tools/train_net.py`` in this process, on the tiny model and the generated set."""

    def run_main(*options: str):
        arguments = ["--config-file", str(CONFIG), *(x for x in options if x.startswith("--"))]
        pairs = [x for x in options if not x.startswith("--")]
        datasets = ["DATASETS.TRAIN", f"('{shapes}',)", "DATASETS.TEST", f"('{shapes}',)"]
        output = ["OUTPUT_DIR", str(tmp_path / "run")]
        return train_net.main(default_argument_parser().parse_args([*arguments, *TINY, *datasets, *output, *pairs]))

    return run_main


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_training_writes_checkpoints_metrics_and_an_evaluation(run, tmp_path):
    run()
    folder = tmp_path / "run"
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    saved = torch.load(folder / "model_final.pth")
    assert saved["iteration"] == 3
    assert "init_proposal_boxes.weight" in saved["model"]
    names = set().union(*read_metrics(folder))
    assert {"total_loss", "loss_ce", "loss_giou_0", "lr", "ground_truths_without_proposal"} <= names
    assert {"bbox/AP", "bbox/AP50", "bbox/AP75"} <= names
    assert list(folder.glob("events.out.tfevents.*"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["MODEL"]["SparseRCNN"]["NUM_CLASSES"] == 5


def test_resuming_goes_on_after_the_last_checkpoint(run, tmp_path):
    run("SOLVER.MAX_ITER", "2")
    run("--resume", "SOLVER.MAX_ITER", "4")
    assert torch.load(tmp_path / "run/model_final.pth")["iteration"] == 3
    steps = [
        torch.load(tmp_path / "run" / name)["trainer"]["_trainer"]["optimizer"]["state"][0]["step"].item()
        for name in ("model_0000001.pth", "model_final.pth")
    ]
    assert steps == [2, 4]


def test_evaluating_a_checkpoint_gives_the_training_runs_own_result(run, tmp_path):
    run()
    trained = read_metrics(tmp_path / "run")[-1]
    results = run("--eval-only", "MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"))
    for name in ("AP", "AP50", "AP75"):
        assert results["bbox"][name] == pytest.approx(trained[f"bbox/{name}"], nan_ok=True)


def test_mixed_precision_trains_with_finite_losses_and_float32_weights(run, tmp_path):
    run("SOLVER.AMP.ENABLED", "True")
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


def test_a_set_with_too_many_boxes_an_image_is_told_at_the_start(run, tmp_path):
    run("MODEL.SparseRCNN.NUM_PROPOSALS", "1", "SOLVER.MAX_ITER", "1")
    log = (tmp_path / "run/log.txt").read_text()
    assert re.search(r"6 images, \d+ boxes, 5 classes", log)
    assert re.search(r"WARNING: .*NUM_PROPOSALS", log)
