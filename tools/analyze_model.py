#!/usr/bin/env python3
"""Counts the parameters, FLOPs and activations of a detector by part, with fvcore.

For one image of random pixels at inference. FLOPs count a multiplication with its addition as one; what fvcore has no
count for (NMS, sorting, element-wise operations) is left out. Activations are the outputs of convolutions and of
matrix products.

    python tools/analyze_model.py --config-file coco/dynamic_sparse_rcnn_R_50_FPN_300pro_3x.yaml --size 800 1216
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.export.flatten import TracingAdapter
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis, parameter_count
from tabulate import tabulate
from torch import nn

from dynamic_sparse_rcnn.prediction.loading import resolve_config

HEADER = ("part", "parameters, M", "GFLOPs", "activations, M")
# Of a data set that a config leaves open; the numbers hardly depend on it.
_DEFAULT_CLASSES = 80


@dataclass(frozen=True)
class PartCount:
    """What one part of a model has and does; the parts of a part follow it."""

    name: str
    depth: int
    parameters: int
    flops: int
    activations: int


def count_by_part(model: nn.Module, inputs: list[dict[str, Any]], depth: int) -> list[PartCount]:
    """Counts for the whole model, its parts and their parts, down to ``depth`` levels."""
    model.eval()
    flops = FlopCountAnalysis(model, inputs)
    adapter = TracingAdapter(model, inputs, allow_non_tensor=True)
    activations = ActivationCountAnalysis(adapter, adapter.flattened_inputs)
    for analysis in (flops, activations):
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_parameters, by_flops, by_activations = parameter_count(model), flops.by_module(), activations.by_module()
    counts = []
    for name, module in model.named_modules():
        level = len(name.split(".")) if name else 0
        if level <= depth and (by_parameters[name] or not name):
            traced = f"model.{name}".rstrip(".")
            counts.append(
                PartCount(
                    name or type(module).__name__, level, by_parameters[name], by_flops[traced], by_activations[traced]
                )
            )
    return counts


def build(config: str, options: Sequence[str]) -> nn.Module:
    """The model of a config, with random weights, on the CPU."""
    cfg = resolve_config(config, None)
    if not isinstance(cfg, CfgNode):
        model: nn.Module = instantiate(LazyConfig.apply_overrides(cfg, list(options)).model)
        return model
    cfg.merge_from_list(list(options))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.CHECKPOINT = False, ""
    cfg.MODEL.SparseRCNN.NUM_CLASSES = cfg.MODEL.SparseRCNN.NUM_CLASSES or _DEFAULT_CLASSES
    return build_model(cfg)


def main(args: argparse.Namespace) -> None:
    """Prints the table."""
    for name in ("fvcore", "dynamic_sparse_rcnn"):
        logging.getLogger(name).setLevel(logging.ERROR)
    model = build(args.config_file, args.opts)
    image = torch.randint(0, 256, (3, *args.size), generator=torch.Generator().manual_seed(0)).float()
    rows = [
        ("  " * count.depth + count.name, count.parameters / 1e6, count.flops / 1e9, count.activations / 1e6)
        for count in count_by_part(model, [{"image": image}], args.depth)
    ]
    print(tabulate(rows, HEADER, floatfmt=("", ".3f", ".3f", ".3f"), preserve_whitespace=True))


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path, or name in the model zoo")
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--depth", type=int, default=2, help="0: the whole model alone; default 2")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs (of a lazy config, KEY=VALUE)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
