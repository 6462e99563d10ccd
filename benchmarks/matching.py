#!/usr/bin/env python3
"""Times the matching of a whole training step: all stages and images, by each matcher, in one process.

Variants alternate, so that what else the machine does hits all alike; medians and their ratio to the loop of
Hungarian matchings are printed. The loop is how public implementations work: one stage and image after the other,
each with its own costs and its own copy to the host.

    python benchmarks/matching.py --stages 6 --images 16 --proposals 300 --ground-truths 5 20 60
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from detectron2.structures import Boxes, Instances
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from torchvision.ops import generalized_box_iou

from dynamic_sparse_rcnn import (
    BatchedTargets,
    HungarianMatcher,
    MatchCostModel,
    OptimalTransportMatcher,
    StagePredictions,
    UnitSchedule,
)

IMAGE_SIZE = (800, 1216)
WEIGHTS = {"class_weight": 2.0, "l1_weight": 5.0, "giou_weight": 2.0, "focal_alpha": 0.25, "focal_gamma": 2.0}


def make_problem(args: argparse.Namespace, ground_truths: int) -> tuple[StagePredictions, list[Instances]]:
    """Predictions that get better stage by stage around random ground truths."""
    height, width = IMAGE_SIZE
    size = torch.tensor([width, height, width, height], dtype=torch.float32)
    instances, boxes = [], []
    for _ in range(args.images):
        center, extent = torch.rand(ground_truths, 2), 0.05 + 0.3 * torch.rand(ground_truths, 2)
        truth = torch.cat([center - extent / 2, center + extent / 2], dim=1).clamp(0, 1) * size
        classes = torch.randint(80, (ground_truths,))
        instances.append(Instances(IMAGE_SIZE, gt_boxes=Boxes(truth), gt_classes=classes).to(args.device))
        near = truth[torch.randint(ground_truths, (args.proposals,))]
        noise = torch.randn(args.stages, args.proposals, 2).repeat(1, 1, 2) * 100
        boxes.append(near + noise / torch.arange(1, args.stages + 1)[:, None, None])
    logits = torch.randn(args.stages, args.images, args.proposals, 80) - 3
    return StagePredictions(logits.to(args.device), torch.stack(boxes, dim=1).to(args.device)), instances


def hungarian_loop(predictions: StagePredictions, instances: list[Instances]) -> None:
    """Costs and matching of one stage and image after the other."""
    for stage_logits, stage_boxes in zip(predictions.logits, predictions.boxes, strict=True):
        for logits, boxes, target in zip(stage_logits, stage_boxes, instances, strict=True):
            height, width = target.image_size
            scale = boxes.new_tensor([width, height, width, height])
            wanted = target.gt_boxes.tensor
            p = logits.sigmoid()[:, target.gt_classes]
            positive = -0.25 * (1 - p) ** 2 * (p + 1e-8).log()
            negative = -0.75 * p**2 * (1 - p + 1e-8).log()
            cost = 2 * (positive - negative) + 5 * torch.cdist(boxes / scale, wanted / scale, p=1)
            linear_sum_assignment((cost - 2 * generalized_box_iou(boxes, wanted)).cpu())


def batched(matcher: torch.nn.Module) -> Callable[[StagePredictions, list[Instances]], None]:
    """Costs and matching as the criterion does them."""
    cost_model = MatchCostModel(**WEIGHTS)

    def match(predictions: StagePredictions, instances: list[Instances]) -> None:
        matcher(cost_model(predictions, BatchedTargets.from_instances(instances, predictions.boxes.device)))

    return match


def transport(solver: str, args: argparse.Namespace) -> torch.nn.Module:
    """The optimal transport matcher with the published units."""
    schedule = UnitSchedule(fixed_k=0, top_q=8, unit_step=0.5, max_positive_ratio=0.8)
    return OptimalTransportMatcher(schedule=schedule, solver=solver, epsilon=args.epsilon, num_iters=args.iterations)


def time_alternating(calls: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if repeat:  # the first is for warming up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Prints a table, one row a number of ground truths and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--ground-truths", type=int, nargs="+", default=[5, 20, 60])
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    variants = {
        "Hungarian, loop": hungarian_loop,
        "Hungarian, batched": batched(HungarianMatcher()),
        "transport, sinkhorn": batched(transport("sinkhorn", args)),
        "transport, exact": batched(transport("exact", args)),
    }
    for ground_truths in args.ground_truths:
        problem = make_problem(args, ground_truths)
        calls = {name: (lambda v=variant, p=problem: v(*p)) for name, variant in variants.items()}
        medians = time_alternating(calls, args.repeats, args.device)
        loop = medians["Hungarian, loop"]
        rows += [(ground_truths, name, 1000 * value, value / loop) for name, value in medians.items()]
    print(tabulate(rows, ("ground truths", "matcher", "ms", "of the loop"), floatfmt=("", "", ".1f", ".2f")))


if __name__ == "__main__":
    main()
