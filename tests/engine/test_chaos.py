"""A training that is killed again and again at random learns what it learns unbroken. It takes minutes:

make test ARGS="-m chaos -n0 -s"
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from compared_runs import assert_same, make_random, recorded, train
from detectron2.config import CfgNode
from ranks import run_ranks, start_ranks
from timm_configs import use_timm
from torch.multiprocessing.spawn import ProcessException

WORLD_SIZE, LENGTH, PERIOD = 2, 72, 4
# When a process is killed: as it starts, in the midst of its iterations, and as the main process writes a checkpoint.
STARTING, TRAINING, SAVING = "starting", "training", "saving"
MOMENTS = [STARTING] * 4 + [TRAINING] * 8 + [SAVING] * 8
# How long after the moment has come, in seconds at most.
DELAYS = {STARTING: 4.0, TRAINING: 0.2, SAVING: 0.02}


@dataclass(frozen=True)
class Kill:
    """One ``kill -9``: ``delay`` seconds after the moment, which is looked for once ``iteration`` is done."""

    moment: str
    iteration: int
    delay: float
    ranks: tuple[int, ...]


def draw_kills(seed: int) -> Iterator[Kill]:
    rng = random.Random(seed)
    iterations = sorted(rng.sample(range(LENGTH - 12), len(MOMENTS)))
    for moment, iteration in zip(rng.sample(MOMENTS, len(MOMENTS)), iterations, strict=True):
        ranks = rng.choice([(0,), (0, 1)] if moment == SAVING else [(0,), (1,), (0, 1), (0, 1)])
        yield Kill(moment, iteration, DELAYS[moment] * rng.random(), ranks)


@pytest.fixture
def cfg(tiny_dynamic_cfg, tmp_path) -> CfgNode:
    """With mixed precision, accumulation, an average of the weights, and evaluations that choose a best checkpoint."""
    cfg = make_random(use_timm(tiny_dynamic_cfg, "test_efficientnet", PRETRAINED=False), tmp_path, LENGTH)
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE_STEPS = PERIOD, 4, 2
    cfg.SOLVER.AMP.ENABLED = cfg.SOLVER.EMA.ENABLED = cfg.TEST.LOSS = True
    cfg.DATASETS.TEST, cfg.INPUT.MIN_SIZE_TEST, cfg.DATALOADER.NUM_WORKERS = cfg.DATASETS.TRAIN, 64, 1
    cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC = 3 * PERIOD, "validation/total_loss"
    return cfg


def half_written(folder: Path) -> set[str]:
    return {file.name for file in folder.glob(".*.partial")}


def wait_for(kill: Kill, folder: Path, done_before: int, processes: list) -> None:
    """Until it is time for a kill."""
    leftovers = half_written(folder)

    def has_come() -> bool:
        if kill.moment == STARTING:
            return True
        done = recorded(folder, 0)[done_before:]
        if not done or done[-1][0] < kill.iteration:
            return False
        return kill.moment == TRAINING or bool(half_written(folder) - leftovers)

    deadline = time.monotonic() + 120
    while not has_come():
        assert all(process.is_alive() for process in processes), f"the run has ended before {kill}"
        assert time.monotonic() < deadline, f"the moment of {kill} does not come"
        time.sleep(0.001)
    time.sleep(kill.delay)


def join(context) -> None:
    while not context.join():
        pass


def train_until(kill: Kill, cfg: CfgNode, folder: Path) -> tuple[int, int]:
    """Starts or resumes the run, and kills it; gives the last checkpoint's and the last iteration's number."""
    done_before = len(recorded(folder, 0))
    context = start_ranks(WORLD_SIZE, train, cfg, folder.name, True)
    wait_for(kill, folder, done_before, context.processes)
    for rank in kill.ranks:
        os.kill(context.processes[rank].pid, signal.SIGKILL)
    with pytest.raises(ProcessException):  # it ends the other, as the launcher does
        join(context)
    tag = folder / "last_checkpoint"
    saved = int(tag.read_text().removeprefix("model_").removesuffix(".pth")) if tag.exists() else -1
    return saved, max([iteration for iteration, _ in recorded(folder, 0)[done_before:]], default=saved)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_run_killed_twenty_times_learns_what_the_unbroken_one_does(cfg, tmp_path):
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    run_ranks(WORLD_SIZE, train, cfg, unbroken.name)
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    for kill in draw_kills(seed=0):
        saved, last = train_until(kill, cfg, killed)
        lost, left = max(0, last - saved), half_written(killed) - seen
        seen |= left
        print(f"{kill}: resumes after iteration {saved}, {lost} lost, {len(left)} files half written", flush=True)
        counts.update({"kills": 1, kill.moment: 1, f"of {len(kill.ranks)} processes": 1, "iterations lost": lost})
        counts.update({"half-written files": len(left), "resumed without a checkpoint": saved < 0})
    run_ranks(WORLD_SIZE, train, cfg, killed.name, True)
    assert_same(killed, unbroken, WORLD_SIZE, ("model_final.pth", "model_best.pth"))
    assert half_written(killed) == set()
    print(f"{dict(counts)}; {len(recorded(killed, 0))} iterations for {LENGTH}; the result is the same, bit by bit")
