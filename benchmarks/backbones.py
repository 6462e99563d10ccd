#!/usr/bin/env python3
"""Size, work and speed of a detector with each backbone: one row a config, as in the documentation's results.

Parameters of the backbone with its pyramid and of the whole detector, GFLOPs of both for one image (a
multiplication with its addition counts as one, as elsewhere in the field), and images per second of whole inferences:
the median of several, the configs taking turns, so that what else the machine does hits all alike.
Weights are random, since they change none of it.

    python benchmarks/backbones.py --device cpu --threads 1 --repeats 3
    python benchmarks/backbones.py --repeats 0    # without speed
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynamic_sparse_rcnn import SparseRCNN, add_dynamic_sparse_rcnn_config

FOLDER = Path(__file__).parents[1] / "configs/coco"
CONFIGS = [
    FOLDER / f"dynamic_sparse_rcnn_{name}_FPN_300pro_3x.yaml"
    for name in (
        "R_50",
        "timm_resnet50",
        "efficientnet_b3",
        "convnext_tiny",
        "swin_tiny",
        "pvt_v2_b2",
        "vit_base_mae",
    )
]


def make_detector(config: Path, device: str) -> SparseRCNN:
    """A detector of a config with random weights, ready for inference."""
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(config))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.PRETRAINED = device, "", False
    torch.manual_seed(0)
    return build_model(cfg).eval()


def make_inputs(size: Sequence[int], device: str) -> list[dict[str, torch.Tensor]]:
    """One random image, as detectron2's mappers give it."""
    return [{"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8, device=device)}]


@torch.no_grad()
def count_gflops(detector: SparseRCNN, inputs: list[dict[str, torch.Tensor]]) -> tuple[float, float]:
    """Those of the backbone with its pyramid, and of the whole detector."""
    images = detector.preprocess_image(inputs).tensor
    totals = []
    torch.backends.mha.set_fastpath_enabled(False)
    for module, argument in ((detector.backbone, images), (detector, inputs)):
        # Attention in its plain steps: not all of its fused kernels are counted.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(argument)
        totals.append(counter.get_total_flops() / 2 / 1e9)
    torch.backends.mha.set_fastpath_enabled(True)
    return totals[0], totals[1]


@torch.no_grad()
def images_per_second(
    detectors: Sequence[nn.Module], inputs: list[dict[str, torch.Tensor]], repeats: int
) -> list[float]:
    """Of each detector; the first round is for warming up."""
    seconds: list[list[float]] = [[] for _ in detectors]
    for round_number in range(repeats + 1):
        for detector, times in zip(detectors, seconds, strict=True):
            start = time.perf_counter()
            detector(inputs)
            if inputs[0]["image"].is_cuda:
                torch.cuda.synchronize(inputs[0]["image"].device)
            if round_number:
                times.append(time.perf_counter() - start)
    return [1 / statistics.median(times) for times in seconds]


def parse_args() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, default=CONFIGS, metavar="CONFIG")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=3, help="timed inferences of each; 0: no speed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Prints the table."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    inputs = make_inputs(args.size, args.device)
    detectors = [make_detector(config, args.device) for config in args.configs]
    header = ["config", "backbone M", "detector M", "backbone GFLOPs", "detector GFLOPs"]
    rows: list[list[str | float]] = []
    for config, detector in zip(args.configs, detectors, strict=True):
        sizes = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (detector.backbone, detector)]
        name = config.stem.removeprefix("dynamic_sparse_rcnn_").removesuffix("_FPN_300pro_3x")
        rows.append([name, *sizes, *count_gflops(detector, inputs)])
    if args.repeats:
        header.append(f"images/s, {torch.cuda.get_device_name() if args.device.startswith('cuda') else 'CPU'}")
        for row, rate in zip(rows, images_per_second(detectors, inputs, args.repeats), strict=True):
            row.append(rate)
    print(f"{args.size[0]}x{args.size[1]}, {args.device}, {args.threads} threads, PyTorch {torch.__version__}\n")
    print(tabulate(rows, header, tablefmt="github", floatfmt=("", ".1f", ".1f", ".0f", ".0f", ".2f")))


if __name__ == "__main__":
    main()
