#!/usr/bin/env python3
"""What dynamic proposal generation costs: parameters, FLOPs, and the time of a training step and of inference.

Two detectors of one config, with static and with dynamic proposals, from the same seed and on the same random images
and ground truths; they take turns, in one process. FLOPs are fvcore's, which counts a multiply-add as one, of one
image at inference.

    python benchmarks/proposals.py --config-file configs/coco/dynamic_sparse_rcnn_R_50_FPN_300pro_3x.yaml
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import torch
from detectors import inference, load_config, make_inputs, training_step
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage
from matching import time_alternating
from tabulate import tabulate
from torch import nn

from dynamic_sparse_rcnn import SparseRCNN

GENERATORS = ("LearnedProposalGenerator", "DynamicProposalGenerator")
Row = tuple[str, float, float, float]


def main() -> None:
    """Prints a table: static, dynamic and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--ground-truths", type=int, default=7, help="of each image")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that both detectors have")
    args = parser.parse_args()
    configs = {name: load_config(args.config_file, [*args.opts, *generator(name)]) for name in GENERATORS}
    cfg = configs[GENERATORS[0]]
    inputs = make_inputs(args, cfg.MODEL.SparseRCNN.NUM_CLASSES)
    detectors = {}
    for name in GENERATORS:
        torch.manual_seed(0)
        detectors[name] = build_model(configs[name])
    rows = [
        row("parameters, M", {name: parameters(detector) / 1e6 for name, detector in detectors.items()}),
        row("FLOPs, G", {name: flops(detector, inputs) / 1e9 for name, detector in detectors.items()}),
    ]
    steps = {name: training_step(configs[name], detectors[name], inputs) for name in GENERATORS}
    inferences = {name: inference(detectors[name], inputs) for name in GENERATORS}
    with EventStorage():
        rows.append(row("training step, ms", in_ms(time_alternating(steps, args.repeats, cfg.MODEL.DEVICE))))
    rows.append(row("inference, ms", in_ms(time_alternating(inferences, args.repeats, cfg.MODEL.DEVICE))))
    print(tabulate(rows, ("", "static", "dynamic", "ratio"), floatfmt=("", ".3f", ".3f", ".4f")))


def generator(name: str) -> list[str]:
    """The options that choose a proposal generator."""
    return ["MODEL.PROPOSAL_GENERATOR.NAME", name]


def parameters(detector: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in detector.parameters())


def flops(detector: SparseRCNN, inputs: list[dict[str, Any]]) -> float:
    """Of the first image."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)  # it lists what it takes as free
    return FlopCountAnalysis(detector.eval(), inputs[:1]).total()


def in_ms(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds to milliseconds."""
    return {name: 1000 * value for name, value in seconds.items()}


def row(name: str, values: dict[str, float]) -> Row:
    """A row of the table."""
    static, dynamic = (values[name] for name in GENERATORS)
    return name, static, dynamic, dynamic / static


if __name__ == "__main__":
    main()
