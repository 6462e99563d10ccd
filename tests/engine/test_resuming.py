"""A run that goes on, after it was killed too: it learns what it would have learned without the interruption."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from ranks import run_ranks, start_ranks
from small_runs import DYNAMIC, read_metrics

from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine.trainer import Trainer

LENGTH, CHECKPOINT = 4, 2


@pytest.fixture
def cfg(tiny_dynamic_cfg, tmp_path) -> CfgNode:
    """A run in which all that can be random is: order, augmentation, dropout; and all that changes with time does."""
    cfg = tiny_dynamic_cfg
    paths = generate_shapes(tmp_path, "train", ShapesConfig(num_images=7, image_size=64))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"coco:{paths.json_path}:{paths.image_folder}",), ()
    cfg.MODEL.SparseRCNN.NUM_CLASSES, cfg.MODEL.SparseRCNN.DROPOUT = 5, 0.1
    cfg.MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS = LENGTH
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = (48, 64, 80), True, [0.7, 0.7]
    cfg.INPUT.CROP.TYPE = "relative_range"
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 2, LENGTH, CHECKPOINT
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR, cfg.SEED = (3,), 3, 1e-3, 7
    return cfg


class Log(HookBase):
    """Writes losses and temperature of each iteration, and waits before the last for a signal, if it is to."""

    def __init__(self, folder: Path, waits: bool) -> None:
        self.folder, self.waits = folder, waits

    def after_step(self) -> None:
        latest = self.trainer.storage.latest().items()
        values = {name: value for name, (value, _) in latest if "time" not in name and name != "eta_seconds"}
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{self.trainer.iter}.json").write_text(json.dumps(values))
        while self.waits and self.trainer.iter == LENGTH - 2:
            time.sleep(0.1)


def train(cfg: CfgNode, name: str, resume: bool = False, waits: bool = False) -> None:
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / name)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    seed_all_rng(cfg.SEED + rank)  # as default_setup does: weights at the start are drawn
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.register_hooks([Log(Path(cfg.OUTPUT_DIR) / f"losses_of_rank_{rank}", waits)])
    trainer.train()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} does not appear"
        time.sleep(0.05)


def assert_same(found: Path, expected: Path, ranks: int) -> None:
    """The same losses and checkpoint, bit by bit."""
    for rank in range(ranks):
        for iteration in range(LENGTH):
            name = f"losses_of_rank_{rank}/{iteration}.json"
            assert json.loads((found / name).read_text()) == json.loads((expected / name).read_text()), name
    first, second = (torch.load(folder / "model_final.pth") for folder in (found, expected))
    torch.testing.assert_close(first["model"], second["model"], rtol=0, atol=0)
    optimizers = [x["trainer"]["_trainer"]["optimizer"]["state"] for x in (first, second)]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)


def train_twice(cfg: CfgNode) -> None:
    """Once to the end, and once until it is killed."""
    train(cfg, "unbroken")
    train(cfg, "killed", waits=True)


def test_a_run_whose_processes_were_all_killed_goes_on_as_if_they_were_not(cfg, tmp_path):
    cfg.OUTPUT_DIR, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.EMA.ENABLED = str(tmp_path), True, True
    world_size = 2
    context = start_ranks(world_size, train_twice, cfg)
    for rank in range(world_size):
        wait_for(tmp_path / f"killed/losses_of_rank_{rank}/{LENGTH - 2}.json")
    for process in context.processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert (tmp_path / "killed/last_checkpoint").read_text() == f"model_{CHECKPOINT - 1:07d}.pth"
    run_ranks(world_size, train, cfg, "killed", True)
    assert_same(tmp_path / "killed", tmp_path / "unbroken", world_size)


def test_resuming_goes_on_after_the_last_checkpoint(run, tmp_path):
    run("SOLVER.MAX_ITER", "2")
    run("--resume", "SOLVER.MAX_ITER", "4")
    assert torch.load(tmp_path / "run/model_final.pth")["iteration"] == 3
    steps = [
        torch.load(tmp_path / "run" / name)["trainer"]["_trainer"]["optimizer"]["state"][0]["step"].item()
        for name in ("model_0000001.pth", "model_final.pth")
    ]
    assert steps == [2, 4]


def test_a_run_keeps_the_seed_that_was_drawn_for_it(run, tmp_path):
    def seed() -> int:
        return yaml.safe_load((tmp_path / "run/config.yaml").read_text())["SEED"]

    run("SEED", "-1", "SOLVER.MAX_ITER", "1")
    drawn = seed()
    run("--resume", "SEED", "-1", "SOLVER.MAX_ITER", "2")
    assert seed() == drawn >= 0
    run("--resume", "SEED", "5", "SOLVER.MAX_ITER", "3")
    assert seed() == 5


def test_resuming_without_a_checkpoint_says_so(run, tmp_path):
    run("--resume", "SOLVER.MAX_ITER", "1")
    assert "--resume finds no checkpoint" in (tmp_path / "run/log.txt").read_text()


def test_a_run_without_iterations_left_is_an_error(run, tmp_path):
    run("SOLVER.MAX_ITER", "2")
    before = (tmp_path / "run/model_final.pth").stat().st_mtime_ns
    for last in ("2", "1"):
        with pytest.raises(ValueError, match=rf"has done 2 iterations, and SOLVER\.MAX_ITER .* is {last}.*raise"):
            run("--resume", "SOLVER.MAX_ITER", last)
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER .* is 0, .*: a training needs"):
        run("SOLVER.MAX_ITER", "0", "OUTPUT_DIR", str(tmp_path / "other"))
    assert (tmp_path / "run/model_final.pth").stat().st_mtime_ns == before


def test_resuming_and_starting_from_weights_are_told_apart(run, tmp_path):
    run("SOLVER.MAX_ITER", "1")
    folder, log = tmp_path / "run", tmp_path / "run/log.txt"
    weights = str(folder / "model_final.pth")
    assert "A new run starts at iteration 0, from random weights" in log.read_text()
    run("--resume", "MODEL.WEIGHTS", "never_read.pth", "SOLVER.MAX_ITER", "2")
    assert f"Resuming the run in {folder} from {weights}; MODEL.WEIGHTS is not read" in log.read_text()
    run("MODEL.WEIGHTS", weights, "SOLVER.MAX_ITER", "1")
    assert f"A new run starts at iteration 0, from the weights of {weights}" in log.read_text()
    assert f"{folder} holds the checkpoints of an earlier run, which this one will overwrite" in log.read_text()
    assert torch.load(weights)["iteration"] == 0


@pytest.mark.parametrize(("key", "value"), [("NUM_PROPOSALS", "7"), ("NUM_HEADS", "2"), ("NUM_HEADS", "4")])
def test_a_run_does_not_go_on_with_another_model(run, tmp_path, key, value):
    run("SOLVER.MAX_ITER", "1")
    with pytest.raises(ValueError, match=r"does not have the model .*config\.yaml of .*run; or start a new run"):
        run("--resume", f"MODEL.SparseRCNN.{key}", value)


def test_what_is_refused_and_evaluations_leave_a_runs_config_alone(run, tmp_path):
    run("SOLVER.MAX_ITER", "1")
    config = (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(ValueError, match="does not have the model"):
        run("--resume", "MODEL.SparseRCNN.NUM_PROPOSALS", "7", "SOLVER.MAX_ITER", "2")
    run(
        "--eval-only",
        "MODEL.WEIGHTS",
        str(tmp_path / "run/model_final.pth"),
        "TEST.VOC_METRIC",
        "voc2012",
        "SEED",
        "-1",
    )
    assert (tmp_path / "run/config.yaml").read_text() == config
    run("--resume", "SOLVER.MAX_ITER", "2")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 2


@pytest.mark.parametrize("mixed", ["False", "True"])
def test_a_run_in_parts_goes_on_after_its_checkpoint(run, tmp_path, mixed):
    options = ["SOLVER.ACCUMULATE_STEPS", "2", "SOLVER.AMP.ENABLED", mixed]
    run("SOLVER.MAX_ITER", "2", *options)
    run("--resume", "SOLVER.MAX_ITER", "4", *options)
    assert torch.load(tmp_path / "run/model_final.pth")["iteration"] == 3
    assert {"total_loss", "ground_truths_without_proposal"} <= set().union(*read_metrics(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"SOLVER\.ACCUMULATE_STEPS is 3, but the batch of a process has 2 image\(s\)"):
        run("SOLVER.ACCUMULATE_STEPS", "3")


def test_the_temperature_goes_on_after_a_resume_where_it_was(run, tmp_path):
    dynamic = [*DYNAMIC, "MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS", "4"]

    def last_temperature() -> float:
        return [row for row in read_metrics(tmp_path / "run") if "dpg/temperature" in row][-1]["dpg/temperature"]

    run(*dynamic, "SOLVER.MAX_ITER", "2")
    assert last_temperature() == pytest.approx(30 - 29 / 4)  # of iteration 1
    run("--resume", *dynamic, "SOLVER.MAX_ITER", "4")
    assert last_temperature() == pytest.approx(30 - 3 * 29 / 4)
    run("--resume", *dynamic, "SOLVER.MAX_ITER", "6")
    assert last_temperature() == 1.0
