"""A training whose second process fails in the third iteration, the first time; as a script, and for launchers."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from train_net import argument_parser

from dynamic_sparse_rcnn.engine.from_yaml import setup
from dynamic_sparse_rcnn.engine.launch import launch
from dynamic_sparse_rcnn.engine.trainer import Trainer


class Failure(HookBase):
    """In the third iteration the second process fails; the others then wait for its share of a sum."""

    def __init__(self, folder: str) -> None:
        self.checkpoint = Path(folder) / "last_checkpoint"

    def before_step(self) -> None:
        if self.trainer.iter == 2 and comm.get_rank() == 1:
            while not self.checkpoint.is_file():  # the first process is still writing it
                time.sleep(0.05)
            raise OSError("the disk of rank 1 is full")


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(args.resume)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        trainer.register_hooks([Failure(cfg.OUTPUT_DIR)])
    trainer.train()


def give(args: argparse.Namespace) -> str:
    """Without a training: what a module has registered, and the number of processes."""
    torch.distributed.all_reduce(torch.ones(1))
    (registered,) = (name for name in META_ARCH_REGISTRY._obj_map if name.startswith("Imported"))
    return f"{registered} {comm.get_world_size()}"


def fail(args: argparse.Namespace) -> None:
    """Without a training: the second process fails, and the first waits for it."""
    if comm.get_rank() == 1:
        raise TypeError("a fault of the program")
    torch.distributed.all_reduce(torch.ones(1))


if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
