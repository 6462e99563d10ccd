#!/usr/bin/env python3
"""Compares settings of Sinkhorn on real predictions: residual, agreement with the exact optimum, time.

Both solvers are given the same whole units, of which alone there is an exact assignment. Agreement is the share
of equal assignments among the proposals that are positive in either.

Takes checkpoints of one run, early to late, and the test set of its config; after
``python tools/generate_shapes.py output/shapes``:

    python benchmarks/sinkhorn_settings.py --config-file output/demo/config.yaml output/demo/model_*.pth
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from tabulate import tabulate

from dynamic_sparse_rcnn import (
    BACKGROUND,
    BatchedTargets,
    MatchCostModel,
    MatchCosts,
    OptimalTransportMatcher,
    add_dynamic_sparse_rcnn_config,
)
from dynamic_sparse_rcnn.checkpoints.loading import StrictCheckpointer
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.engine.from_yaml import prepare_config

EPSILONS = (0.5, 0.2, 0.1, 0.05, 0.02)
ITERATIONS = (20, 50, 100, 200)
REPEATS = 5


def main() -> None:
    """Prints a table, one row a checkpoint and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    args = parser.parse_args()
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(args.config_file)
    prepare_config(cfg, is_train=False)
    rows = []
    for checkpoint in args.checkpoints:
        costs = costs_of(cfg, checkpoint, args.images)
        exact = whole_units_matcher(cfg, "exact")(costs).gt_index
        for epsilon, iterations in itertools.product(EPSILONS, ITERATIONS):
            rows.append((checkpoint.stem, epsilon, iterations, *measure(cfg, costs, exact, epsilon, iterations)))
    names = ("checkpoint", "epsilon", "iterations", "mean residual", "largest", "agreement %", "ms")
    print(tabulate(rows, names, floatfmt=("", "g", "g", ".3f", ".2f", ".1f", ".1f")))


@torch.no_grad()
def costs_of(cfg: CfgNode, checkpoint: Path, num_images: int) -> MatchCosts:
    """The costs of all stages for the first images of the test set."""
    mapper = DetectionMapper(cfg, is_train=False)
    mapper.is_train = True  # keeps the annotations
    inputs = [mapper(record) for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])[:num_images]]
    detector = build_model(cfg).eval()
    StrictCheckpointer(detector).load(str(checkpoint))
    predictions = detector.predict(detector.preprocess_image(inputs))
    targets = BatchedTargets.from_instances([x["instances"] for x in inputs], detector.device)
    return MatchCostModel(cfg)(predictions, targets)


def whole_units_matcher(cfg: CfgNode, solver: str) -> OptimalTransportMatcher:
    """The config's matcher, with its units rounded down."""
    cfg.MODEL.SparseRCNN.DLA.SOLVER = solver
    matcher = OptimalTransportMatcher(cfg)
    schedule = matcher.schedule
    matcher.schedule = lambda costs: (schedule(costs) + 1e-4).floor().clamp(min=1) * costs.valid
    return matcher


def measure(
    cfg: CfgNode, costs: MatchCosts, exact: torch.Tensor, epsilon: float, iterations: int
) -> tuple[float, float, float, float]:
    """Mean and largest residual in units, agreement in percent, and milliseconds."""
    node = cfg.MODEL.SparseRCNN.DLA
    node.SINKHORN_EPS, node.SINKHORN_ITERS = epsilon, iterations
    matcher = whole_units_matcher(cfg, "sinkhorn")
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        assignment = matcher(costs)
        if costs.cost.is_cuda:
            torch.cuda.synchronize(costs.cost.device)
        seconds.append(time.perf_counter() - start)
    assert assignment.residual is not None
    positive = (exact != BACKGROUND) | assignment.positive
    agreement = (exact == assignment.gt_index)[positive].float().mean()
    residual = assignment.residual
    return residual.mean().item(), residual.max().item(), 100 * agreement.item(), 1000 * statistics.median(seconds)


if __name__ == "__main__":
    main()
