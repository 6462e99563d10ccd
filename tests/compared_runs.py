"""Trainings that record each iteration, so that two of them can be compared bit by bit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng

from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine.trainer import Trainer


def make_random(cfg: CfgNode, folder: Path, length: int) -> CfgNode:
    """Gives a run order, augmentation and dropout to draw, and settings that change with time."""
    paths = generate_shapes(folder, "train", ShapesConfig(num_images=7, image_size=64))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"coco:{paths.json_path}:{paths.image_folder}",), ()
    cfg.MODEL.SparseRCNN.NUM_CLASSES, cfg.MODEL.SparseRCNN.DROPOUT = 5, 0.1
    cfg.MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS = length
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = (48, 64, 80), True, [0.7, 0.7]
    cfg.INPUT.CROP.TYPE = "relative_range"
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.OUTPUT_DIR = 2, length, str(folder)
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR, cfg.SEED = (length - 1,), 3, 1e-3, 7
    return cfg


class Recorder(HookBase):
    """Adds a line with losses and temperature to a file after each iteration; may wait after one to be killed."""

    def __init__(self, file: Path, waits_after: int | None) -> None:
        self.file, self.waits_after = file, waits_after

    def after_step(self) -> None:
        latest = self.trainer.storage.latest().items()
        own = {name: value for name, (value, iteration) in latest if iteration == self.trainer.iter}
        values = {name: value for name, value in own.items() if "time" not in name and name != "eta_seconds"}
        with self.file.open("a") as file:
            file.write(json.dumps([self.trainer.iter, values]) + "\n")
        while self.trainer.iter == self.waits_after:
            time.sleep(0.1)


def train(cfg: CfgNode, name: str, resume: bool = False, waits_after: int | None = None) -> None:
    """Trains in the folder ``name`` of ``cfg.OUTPUT_DIR``, in this process or as one of several."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / name)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    seed_all_rng(cfg.SEED + rank)  # as default_setup does: weights at the start are drawn
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.register_hooks([Recorder(record_of(Path(cfg.OUTPUT_DIR), rank), waits_after)])
    trainer.train()


def record_of(folder: Path, rank: int) -> Path:
    """Where a process of a run records its iterations."""
    return folder / f"iterations_of_rank_{rank}.jsonl"


def recorded(folder: Path, rank: int) -> list[tuple[int, dict[str, float]]]:
    """What a process has recorded so far, iterations that were lost and repeated included."""
    file = record_of(folder, rank)
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]  # the last may have been cut


def assert_same(found: Path, expected: Path, ranks: int, checkpoints: tuple[str, ...] = ("model_final.pth",)) -> None:
    """Two runs had the same losses whenever they did an iteration, and have the same checkpoints, bit by bit."""
    for rank in range(ranks):
        once, repeated = dict(recorded(expected, rank)), recorded(found, rank)
        # A run may be killed when it has saved the checkpoint of an iteration and not recorded it yet.
        assert once and all(i + 1 in dict(repeated) for i in once.keys() - dict(repeated).keys())
        for iteration, values in repeated:
            assert values == once[iteration], f"iteration {iteration} of rank {rank}"
    for name in checkpoints:
        assert_same_checkpoints(found / name, expected / name)


def assert_same_checkpoints(found: Path, expected: Path) -> None:
    """Weights, averages, optimizer and all else are the same, bit by bit."""
    first, second = (dict(_leaves(torch.load(file))) for file in (found, expected))
    assert first.keys() == second.keys()
    assert [key for key, value in first.items() if not _is_same(value, second[key])] == []


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """All values of nested containers, by their paths."""
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{path}/{key}")
    else:
        yield path, value


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other
