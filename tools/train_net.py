#!/usr/bin/env python3
"""Trains and evaluates a detector, with detectron2's own command line.

tools/train_net.py --config-file configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml --num-gpus 8
tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
"""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from dynamic_sparse_rcnn.engine.trainer import Trainer, setup

logger = logging.getLogger("dynamic_sparse_rcnn.train_net")


def main(args: argparse.Namespace) -> OrderedDict | None:
    """One process of the run: trains, or with ``--eval-only`` evaluates."""
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        if args.resume and not trainer.checkpointer.has_checkpoint():
            logger.warning(f"--resume finds no checkpoint in {cfg.OUTPUT_DIR}: this run starts at iteration 0")
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    if not cfg.MODEL.WEIGHTS and not args.resume:
        raise SystemExit("error: --eval-only needs MODEL.WEIGHTS <checkpoint>, or --resume for the last of OUTPUT_DIR")
    model = Trainer.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
