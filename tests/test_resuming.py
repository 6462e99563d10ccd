"""A run that goes on after it was killed learns what it would have learned without the interruption."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from ranks import run_ranks, start_ranks

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
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
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


@pytest.mark.parametrize(("world_size", "mixed"), [(2, False), (1, True)])
def test_a_run_whose_processes_were_all_killed_goes_on_as_if_they_were_not(cfg, tmp_path, world_size, mixed):
    cfg.OUTPUT_DIR, cfg.SOLVER.AMP.ENABLED = str(tmp_path), mixed
    run_ranks(world_size, train, cfg, "unbroken")
    context = start_ranks(world_size, train, cfg, "killed", False, True)
    for rank in range(world_size):
        wait_for(tmp_path / f"killed/losses_of_rank_{rank}/{LENGTH - 2}.json")
    for process in context.processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert (tmp_path / "killed/last_checkpoint").read_text() == f"model_{CHECKPOINT - 1:07d}.pth"
    run_ranks(world_size, train, cfg, "killed", True)
    assert_same(tmp_path / "killed", tmp_path / "unbroken", world_size)
