#!/usr/bin/env python3
"""Times the matching of a whole training step: all stages and images, by each matcher, in one process.

Variants alternate, so that what else the machine does hits all alike; medians and their ratio to the loop of
Hungarian matchings are printed. The loops are how public implementations work: one stage and image after the other,
each with its own costs and its own copy to the host. All are given the same predictions and, where they take units,
the same published schedule of them.

    python benchmarks/matching.py --stages 6 --images 16 --proposals 300 --ground-truths 5 20 60
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import ot
import torch
from detectron2.structures import Boxes, Instances
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from timing import time_alternating
from torchvision.ops import generalized_box_iou

from dynamic_sparse_rcnn import (
    BatchedTargets,
    ClassCost,
    GIoUCost,
    HungarianMatcher,
    L1Cost,
    MatchCostModel,
    OptimalTransportMatcher,
    StagePredictions,
    UnitSchedule,
)

IMAGE_SIZE = (800, 1216)
COST_MODEL = MatchCostModel(
    terms=[ClassCost(weight=2.0, alpha=0.25, gamma=2.0), L1Cost(weight=5.0), GIoUCost(weight=2.0)]
)
SCHEDULE = UnitSchedule(fixed_k=0, top_q=8, unit_step=0.5, max_positive_ratio=0.8)
NUM_CLASSES = 80


@dataclass(frozen=True)
class Problem:
    """One training step's predictions and ground truths, and the published units of these."""

    predictions: StagePredictions
    instances: list[Instances]
    units: torch.Tensor  # (S, B, G)

    def each(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, Instances, torch.Tensor]]:
        """Logits, boxes, ground truths and units of one stage and image after the other."""
        logits, boxes = self.predictions.logits, self.predictions.boxes
        for stage, image in itertools.product(range(logits.shape[0]), range(logits.shape[1])):
            target = self.instances[image]
            yield logits[stage, image], boxes[stage, image], target, self.units[stage, image, : len(target)]


def make_problem(args: argparse.Namespace, ground_truths: int) -> Problem:
    """Predictions that get better, in place and class, stage by stage around random ground truths."""
    height, width = IMAGE_SIZE
    size = torch.tensor([width, height, width, height], dtype=torch.float32)
    instances, boxes, logits = [], [], []
    stage = torch.arange(1, args.stages + 1)[:, None]
    for image in range(args.images):
        number = max(1, ground_truths * (image + 1) // args.images) if args.mixed else ground_truths
        center, extent = torch.rand(number, 2), 0.05 + 0.3 * torch.rand(number, 2)
        truth = torch.cat([center - extent / 2, center + extent / 2], dim=1).clamp(0, 1) * size
        classes = torch.randint(NUM_CLASSES, (number,))
        instances.append(Instances(IMAGE_SIZE, gt_boxes=Boxes(truth), gt_classes=classes).to(args.device))
        near = torch.randint(number, (args.proposals,))
        boxes.append(truth[near] + torch.randn(args.stages, args.proposals, 2).repeat(1, 1, 2) * 100 / stage[..., None])
        logits.append(torch.randn(args.stages, args.proposals, NUM_CLASSES) - 4)
        logits[-1][:, torch.arange(args.proposals), classes[near]] += 0.7 * stage
    predictions = StagePredictions(torch.stack(logits, 1).to(args.device), torch.stack(boxes, 1).to(args.device))
    targets = BatchedTargets.from_instances(instances, predictions.boxes.device)
    return Problem(predictions, instances, SCHEDULE(COST_MODEL(predictions, targets)))


def cost_of_one(logits: torch.Tensor, boxes: torch.Tensor, target: Instances) -> torch.Tensor:
    """(P, G) matching cost of one stage and image."""
    height, width = target.image_size
    scale = boxes.new_tensor([width, height, width, height])
    wanted = target.gt_boxes.tensor
    p = logits.sigmoid()[:, target.gt_classes]
    positive = -0.25 * (1 - p) ** 2 * (p + 1e-8).log()
    negative = -0.75 * p**2 * (1 - p + 1e-8).log()
    cost = 2 * (positive - negative) + 5 * torch.cdist(boxes / scale, wanted / scale, p=1)
    return cost - 2 * generalized_box_iou(boxes, wanted)


def hungarian_loop(problem: Problem) -> None:
    """Costs and one-to-one matching of one stage and image after the other."""
    for logits, boxes, target, _ in problem.each():
        linear_sum_assignment(cost_of_one(logits, boxes, target).cpu())


def sinkhorn_loop(problem: Problem) -> None:
    """OTA's way: for one stage and image after the other, 100 iterations in the log domain at epsilon 0.1."""
    for logits, boxes, target, units in problem.each():
        cost = cost_of_one(logits, boxes, target).T
        kernel = torch.cat([cost, cost.new_zeros(1, cost.shape[1])]) / -0.1
        log_mass = torch.cat([units, cost.shape[1] - units.sum(0, keepdim=True)]).log()
        columns = kernel.new_zeros(kernel.shape[1])
        for _ in range(100):
            rows = log_mass - (kernel + columns).logsumexp(1)
            columns = -(kernel + rows[:, None]).logsumexp(0)
        plan = (kernel + rows[:, None] + columns).exp()
        (plan / plan.amax(1, keepdim=True)).argmax(0)


def pot_loop(problem: Problem) -> None:
    """POT's exact solver, for one stage and image after the other."""
    for logits, boxes, target, units in problem.each():
        cost = cost_of_one(logits, boxes, target).T
        table = torch.cat([cost, cost.new_zeros(1, cost.shape[1])]).double().cpu().numpy()
        mass = units.floor().clamp(min=1).double().cpu().numpy()
        ot.emd(np.append(mass, table.shape[1] - mass.sum()), np.ones(table.shape[1]), table)


def batched(matcher: torch.nn.Module) -> Callable[[Problem], None]:
    """Costs, units and matching as the criterion does them."""

    def match(problem: Problem) -> None:
        predictions = problem.predictions
        matcher(COST_MODEL(predictions, BatchedTargets.from_instances(problem.instances, predictions.boxes.device)))

    return match


def transport(solver: str, args: argparse.Namespace) -> torch.nn.Module:
    """The optimal transport matcher with the published units."""
    return OptimalTransportMatcher(schedule=SCHEDULE, solver=solver, epsilon=args.epsilon, num_iters=args.iterations)


def main() -> None:
    """Prints a table, one row a number of ground truths and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--ground-truths", type=int, nargs="+", default=[5, 20, 60])
    parser.add_argument("--mixed", action="store_true", help="images of 1 to that many ground truths")
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    variants = {
        "Hungarian, loop": hungarian_loop,
        "OTA's Sinkhorn, loop": sinkhorn_loop,
        "POT's exact, loop": pot_loop,
        "Hungarian, batched": batched(HungarianMatcher()),
        "transport, sinkhorn": batched(transport("sinkhorn", args)),
        "transport, exact": batched(transport("exact", args)),
    }
    for ground_truths in args.ground_truths:
        problem = make_problem(args, ground_truths)
        calls = {name: (lambda v=variant, p=problem: v(p)) for name, variant in variants.items()}
        medians = time_alternating(calls, args.repeats, args.device)
        loop = medians["Hungarian, loop"]
        rows += [(ground_truths, name, 1000 * value, value / loop) for name, value in medians.items()]
    print(tabulate(rows, ("ground truths", "matcher", "ms", "of the loop"), floatfmt=("", "", ".1f", ".2f")))


if __name__ == "__main__":
    main()
