"""A training whose second process fails in the third iteration, the first time; as a script, and for launchers."""

from __future__ import annotations

import argparse
import os

from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from train_net import argument_parser

from dynamic_sparse_rcnn.engine.from_yaml import setup
from dynamic_sparse_rcnn.engine.launch import launch
from dynamic_sparse_rcnn.engine.trainer import Trainer


class Failure(HookBase):
    """In the third iteration the second process fails; the others then wait for its share of a sum."""

    def before_step(self) -> None:
        if self.trainer.iter == 2 and comm.get_rank() == 1:
            raise OSError("the disk of rank 1 is full")


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(args.resume)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        trainer.register_hooks([Failure()])
    trainer.train()


def fail_or_give(args: argparse.Namespace) -> str:
    """Without a training: the second process fails if it is to; the first gives what a module has registered."""
    import torch

    if args.fails and comm.get_rank() == 1:
        raise TypeError("a fault of the program")
    torch.distributed.all_reduce(torch.ones(1))
    (registered,) = (name for name in META_ARCH_REGISTRY._obj_map if name.startswith("Imported"))
    return f"{registered} {comm.get_world_size()}"


if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
