#!/usr/bin/env python3
"""Times a training step and inference of a config, with and without some of its options, in one process.

Both detectors start from the same seed and see the same random images and ground truths; they take turns, so that
what else the machine does hits both alike. A step is the forward pass, the backward pass and the optimiser's.

    python benchmarks/detectors.py --config-file configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml \\
        MODEL.SparseRCNN.CRITERION DLACriterion MODEL.SparseRCNN.MATCHER OptimalTransportMatcher
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from matching import time_alternating
from tabulate import tabulate
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
    steps, inferences = {}, {}
    for name, cfg in configs.items():
        torch.manual_seed(0)
        detector = build_model(cfg)
        steps[name] = training_step(cfg, detector, inputs)
        inferences[name] = inference(detector, inputs)
    device = configs["without"].MODEL.DEVICE
    with EventStorage():
        rows = [row("training step", time_alternating(steps, args.repeats, device))]
    rows.append(row("inference", time_alternating(inferences, args.repeats, device)))
    print(tabulate(rows, ("", "ms without", "ms with", "ratio"), floatfmt=("", ".1f", ".1f", ".3f")))


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
    """A step of the config's optimiser, under autocast if the config asks for mixed precision."""
    optimizer = build_optimizer(cfg, detector)

    def step() -> None:
        detector.train()
        with torch.autocast(cfg.MODEL.DEVICE, torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED):
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


def row(name: str, seconds: dict[str, float]) -> tuple[str, float, float, float]:
    """A row of the table."""
    return name, 1000 * seconds["without"], 1000 * seconds["with"], seconds["with"] / seconds["without"]


if __name__ == "__main__":
    main()
