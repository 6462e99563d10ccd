#!/usr/bin/env python3
"""Trains and evaluates a detector, with detectron2's own command line.

tools/train_net.py --config-file configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml --num-gpus 8
tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
torchrun --nproc-per-node 8 tools/train_net.py --config-file ... --resume
tools/train_net.py --config-file configs/lazy/sparse_rcnn_R_50_FPN_300pro_3x.py dataloader.train.total_batch_size=8
"""

from __future__ import annotations

import argparse

from detectron2.engine import default_argument_parser

from dynamic_sparse_rcnn.cli.options import add_import_option, add_trust_option
from dynamic_sparse_rcnn.cli.running import run_process as main
from dynamic_sparse_rcnn.engine.launch import launch
from dynamic_sparse_rcnn.errors import add_traceback_option, one_line_errors


def argument_parser() -> argparse.ArgumentParser:
    """detectron2's options and our own."""
    parser = default_argument_parser()
    for add in (add_import_option, add_trust_option, add_traceback_option):
        add(parser)
    return parser


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    with one_line_errors(arguments.traceback):
        launch(main, arguments)
