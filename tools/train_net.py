#!/usr/bin/env python3
"""Trains and evaluates a detector, with detectron2's own command line.

tools/train_net.py --config-file configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml --num-gpus 8
tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
torchrun --nproc-per-node 8 tools/train_net.py --config-file ... --resume
tools/train_net.py --config-file configs/lazy/sparse_rcnn_R_50_FPN_300pro_3x.py dataloader.train.total_batch_size=8
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from dynamic_sparse_rcnn import DetectorWithTTA
from dynamic_sparse_rcnn.checkpoints.loading import load_for_evaluation
from dynamic_sparse_rcnn.config_reading import ConfigError, is_lazy_config, read_config
from dynamic_sparse_rcnn.engine.launch import launch
from dynamic_sparse_rcnn.engine.lazy import run as run_lazy
from dynamic_sparse_rcnn.engine.trainer import Trainer, setup


def main(args: argparse.Namespace) -> OrderedDict | None:
    """One process of the run: trains, or with ``--eval-only`` evaluates."""
    trust = getattr(args, "trust_checkpoint", False)
    if args.config_file and is_lazy_config(args.config_file):
        return run_lazy(args, trust)
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.checkpointer.trust = trust
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    load_for_evaluation(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, args.resume, trust)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        folder = str(Path(cfg.OUTPUT_DIR) / "inference_TTA")
        evaluators = [Trainer.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        augmented = Trainer.test(cfg, DetectorWithTTA(cfg, model), evaluators)
        results |= {f"{task}_TTA": metrics for task, metrics in augmented.items()}
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def argument_parser() -> argparse.ArgumentParser:
    """detectron2's options and our own."""
    parser = default_argument_parser()
    parser.add_argument("--trust-checkpoint", action="store_true", help="run code that a pickled checkpoint may hold")
    return parser


def check_config(args: argparse.Namespace) -> None:
    """Ends the command, with one line, if the config cannot be read; the processes would each show a stack trace."""
    try:
        read_config(args.config_file, args.opts)
    except (FileNotFoundError, ConfigError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    check_config(arguments)
    launch(main, arguments)
