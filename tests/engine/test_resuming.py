"""A run that goes on, after it was killed too: it learns what it would have learned without the interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from compared_runs import assert_same, make_random, recorded, train
from detectron2.config import CfgNode
from ranks import run_ranks, start_ranks
from small_runs import DYNAMIC, read_metrics

LENGTH, CHECKPOINT = 4, 2


@pytest.fixture
def cfg(tiny_dynamic_cfg, tmp_path) -> CfgNode:
    make_random(tiny_dynamic_cfg, tmp_path, LENGTH).SOLVER.CHECKPOINT_PERIOD = CHECKPOINT
    return tiny_dynamic_cfg


def train_twice(cfg: CfgNode) -> None:
    """Once to the end, and once until it is killed before the last iteration."""
    train(cfg, "unbroken")
    train(cfg, "killed", waits_after=LENGTH - 2)


def wait_until_recorded(folder: Path, rank: int, iteration: int) -> None:
    deadline = time.monotonic() + 120
    while iteration not in dict(recorded(folder, rank)):
        assert time.monotonic() < deadline, f"rank {rank} does not reach iteration {iteration}"
        time.sleep(0.05)


def test_a_run_whose_processes_were_all_killed_goes_on_as_if_they_were_not(cfg, tmp_path):
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.EMA.ENABLED = True, True
    world_size = 2
    context = start_ranks(world_size, train_twice, cfg)
    for rank in range(world_size):
        wait_until_recorded(tmp_path / "killed", rank, LENGTH - 2)
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


def test_a_resumed_run_has_the_learning_rate_and_weight_decay_of_its_config(run, tmp_path):
    constant = ("SOLVER.WARMUP_ITERS", "1", "SOLVER.CLIP_GRADIENTS.ENABLED", "False")
    run(*constant, "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.0004")
    changed = ("SOLVER.BASE_LR", "0.0001", "SOLVER.WEIGHT_DECAY", "0.03", "SOLVER.STEPS", "(3,)")
    run("--resume", *constant, *changed, "SOLVER.MAX_ITER", "4")
    saved = torch.load(tmp_path / "run/model_final.pth")["trainer"]
    group = max(saved["_trainer"]["optimizer"]["param_groups"], key=lambda group: group["weight_decay"])
    assert group["weight_decay"] == 0.03
    rates = [row["lr"] for row in read_metrics(tmp_path / "run") if "lr" in row]
    assert rates[-1] == pytest.approx(0.0001 * 0.1)  # the rate of the fourth iteration, after the step


def test_a_start_that_fails_leaves_the_earlier_run_as_it_was(run, shapes, tmp_path):
    run("SOLVER.MAX_ITER", "1")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix in (".pth", ".yaml")}
    content = json.loads(Path(shapes.split(":")[1]).read_text())
    content["images"][0]["file_name"] = "missing.png"
    (tmp_path / "missing.json").write_text(json.dumps(content))
    incomplete = f"('coco:{tmp_path / 'missing.json'}:{shapes.split(':')[2]}',)"
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        with pytest.raises(FileNotFoundError, match=r"missing\.png"):
            run(key, incomplete, "SOLVER.MAX_ITER", "3")
    with pytest.raises(FileNotFoundError):
        run("MODEL.WEIGHTS", str(tmp_path / "no.pth"), "SOLVER.MAX_ITER", "3")
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in before} == {"model_best.pth", "model_final.pth", "config.yaml"}


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


def test_a_run_without_iterations_left_is_evaluated_and_not_trained(run, tmp_path):
    """It may have been killed in its last evaluation."""
    run("SOLVER.MAX_ITER", "2")
    before = (tmp_path / "run/model_final.pth").stat().st_mtime_ns
    results = tmp_path / "run/inference/coco_instances_results.json"
    (tmp_path / "run/report.html").unlink()
    results.unlink()
    run("--resume", "SOLVER.MAX_ITER", "2")
    assert results.is_file() and (tmp_path / "run/report.html").is_file()
    assert read_metrics(tmp_path / "run")[-1]["iteration"] == 2
    with pytest.raises(ValueError, match=r"has done 2 iterations, more than 1\. .*raise SOLVER\.MAX_ITER"):
        run("--resume", "SOLVER.MAX_ITER", "1")
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER .* is 0, .*: a training needs"):
        run("SOLVER.MAX_ITER", "0", "OUTPUT_DIR", str(tmp_path / "other"))
    assert (tmp_path / "run/model_final.pth").stat().st_mtime_ns == before


def test_resuming_and_starting_from_weights_are_told_apart(run, tmp_path):
    run("SOLVER.MAX_ITER", "1")
    folder, log = tmp_path / "run", tmp_path / "run/log.txt"
    weights = str(folder / "model_final.pth")
    assert "A new run starts at iteration 0, from no checkpoint" in log.read_text()
    run("--resume", "MODEL.WEIGHTS", "never_read.pth", "SOLVER.MAX_ITER", "2")
    assert f"Resuming the run in {folder} from {weights}; MODEL.WEIGHTS is not read" in log.read_text()
    with pytest.raises(ValueError, match="is of an earlier run in the output folder, which a new one sets aside"):
        run("MODEL.WEIGHTS", weights, "SOLVER.MAX_ITER", "1")
    own = shutil.copy(weights, tmp_path / "weights.pth")
    run("MODEL.WEIGHTS", str(own), "SOLVER.MAX_ITER", "1")
    assert f"A new run starts at iteration 0, from the weights of {own}" in log.read_text()
    assert f"{folder} has an earlier run: moved " in log.read_text()
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
