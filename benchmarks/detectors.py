#!/usr/bin/env python3
"""What options cost a detector: parameters, FLOPs, and the time of a training step and of inference.

Two detectors of one config, without and with the options, from the same seed and on the same random images and ground
truths; they take turns, in one process, so that what else the machine does hits both alike. A step is the forward
pass, the backward pass and the optimizer's. FLOPs are fvcore's, which counts a multiply-add as one, of one image at
inference.

    python benchmarks/detectors.py --config-file configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml \\
        MODEL.SparseRCNN.MATCHER OptimalTransportMatcher
    python benchmarks/detectors.py --config-file configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml \\
        MODEL.PROPOSAL_GENERATOR.NAME DynamicProposalGenerator
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from timing import time_alternating
from torch import nn

from dynamic_sparse_rcnn import add_dynamic_sparse_rcnn_config
from dynamic_sparse_rcnn.engine.solver import build_optimizer


def main() -> None:
    """Prints a table: milliseconds without and with the options, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--ground-truths", type=int, default=7, help="of each image")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that the second detector has")
    args = parser.parse_args()
    configs = {"without": load_config(args.config_file, []), "with": load_config(args.config_file, args.opts)}
    inputs = make_inputs(args, configs["without"].MODEL.SparseRCNN.NUM_CLASSES)
    detectors, steps, inferences = {}, {}, {}
    for name, cfg in configs.items():
        torch.manual_seed(0)
        detectors[name] = build_model(cfg)
        steps[name] = training_step(cfg, detectors[name], inputs)
        inferences[name] = inference(detectors[name], inputs)
    rows = [
        row("parameters, M", {name: parameters(detector) / 1e6 for name, detector in detectors.items()}),
        row("FLOPs, G", {name: flops(detector, inputs) / 1e9 for name, detector in detectors.items()}),
    ]
    device = configs["without"].MODEL.DEVICE
    with EventStorage():
        rows.append(row("training step, ms", in_ms(time_alternating(steps, args.repeats, device))))
    rows.append(row("inference, ms", in_ms(time_alternating(inferences, args.repeats, device))))
    print(tabulate(rows, ("", "without", "with", "ratio"), floatfmt=("", ".3f", ".3f", ".4f")))


def load_config(path: str, options: list[str]) -> CfgNode:
    """The config, on a GPU where there is one; without data sets, small ones get 80 classes."""
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(path)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.SparseRCNN.NUM_CLASSES = cfg.MODEL.SparseRCNN.NUM_CLASSES or 80
    cfg.merge_from_list(options)
    return cfg


def make_inputs(args: argparse.Namespace, num_classes: int) -> list[dict[str, Any]]:
    """Noise with random boxes, as detectron2's mapper gives images."""
    height, width = args.size
    inputs: list[dict[str, Any]] = []
    for _ in range(args.images):
        corners = torch.rand(args.ground_truths, 2, 2).sort(1).values.flatten(1)
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(corners * torch.tensor([width, height, width, height])),
            gt_classes=torch.randint(num_classes, (args.ground_truths,)),
        )
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances, "height": height, "width": width})
    return inputs


def training_step(cfg: CfgNode, detector: nn.Module, inputs: list[dict[str, Any]]) -> Callable[[], None]:
    """A step of the config's optimizer; if the config asks for mixed precision, in bfloat16 (no gradient scaler)."""
    optimizer = build_optimizer(cfg, detector)

    def step() -> None:
        detector.train()
        with torch.autocast(torch.device(cfg.MODEL.DEVICE).type, torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED):
            loss = sum(detector(inputs).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def inference(detector: nn.Module, inputs: list[dict[str, Any]]) -> Callable[[], None]:
    """Inference with pre- and post-processing."""

    @torch.no_grad()
    def infer() -> None:
        detector.eval()(inputs)

    return infer


def parameters(detector: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in detector.parameters())


def flops(detector: nn.Module, inputs: list[dict[str, Any]]) -> float:
    """Of the first image."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)  # it lists what it takes as free
    return FlopCountAnalysis(detector.eval(), inputs[:1]).total()


def in_ms(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds to milliseconds."""
    return {name: 1000 * value for name, value in seconds.items()}


def row(name: str, values: dict[str, float]) -> tuple[str, float, float, float]:
    """A row of the table."""
    return name, values["without"], values["with"], values["with"] / values["without"]


if __name__ == "__main__":
    main()
