#!/usr/bin/env python3
"""What it is worth that dynamic proposals depend on the image: each checkpoint's AP with other weights of its experts.

- ``own``: those that the router gives the image;
- ``mean``: their mean over the test set, the same for every image: proposals as static as Sparse R-CNN's;
- ``another's``: those of another image of the test set, taken at random.

All three are the same detector, so that the spread of trainings, which is larger, does not blur them. Takes the test
set of the checkpoints' config:

    python benchmarks/image_dependence.py --config-file output/demo/config.yaml output/demo/model_final.pth
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor

from dynamic_sparse_rcnn import DynamicProposalGenerator, SparseRCNN, add_dynamic_sparse_rcnn_config
from dynamic_sparse_rcnn.checkpoints.loading import load_for_evaluation
from dynamic_sparse_rcnn.engine.from_yaml import prepare_config
from dynamic_sparse_rcnn.engine.trainer import Trainer

NAMES = ("checkpoint", "own", "mean", "another's", "weight entropy", "weight variance")


def main(args: argparse.Namespace) -> None:
    """Prints a table, one row a checkpoint."""
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(args.config_file)
    prepare_config(cfg, is_train=False)
    detector = build_model(cfg).eval()
    if not isinstance(detector.proposal_generator, DynamicProposalGenerator):
        raise SystemExit(f"error: {args.config_file} has static proposals, the same for every image")
    rows = []
    for checkpoint in args.checkpoints:
        load_for_evaluation(detector, str(checkpoint))
        rows.append((os.path.join(checkpoint.parent.name, checkpoint.name), *compare(cfg, detector)))
    print(tabulate(rows, NAMES, floatfmt=("", ".2f", ".2f", ".2f", ".3f", ".5f")))


def compare(cfg: CfgNode, detector: SparseRCNN) -> tuple[float, ...]:
    """AP with an image's own weights, their mean, and another image's; entropy and variance of the weights."""
    generator = detector.proposal_generator
    assert isinstance(generator, DynamicProposalGenerator)
    with recorded_weights(generator) as recorded:
        own = average_precision(cfg, detector)
    weights = torch.cat(recorded)
    with given_weights(generator, weights.mean(0, keepdim=True).expand_as(weights)):
        mean = average_precision(cfg, detector)
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))
    with given_weights(generator, weights[order]):
        others = average_precision(cfg, detector)
    entropy = torch.special.entr(weights).sum(1).mean().item()
    return own, mean, others, entropy, weights.var(0).mean().item()


def average_precision(cfg: CfgNode, detector: SparseRCNN) -> float:
    """COCO's AP of the boxes on the first test set."""
    evaluator = Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
    cfg = cfg.clone()
    cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
    return Trainer.test(cfg, detector, [evaluator])["bbox"]["AP"]


@contextmanager
def recorded_weights(generator: DynamicProposalGenerator) -> Iterator[list[Tensor]]:
    """Keeps the (B, E, P) weights that the generator gives meanwhile."""
    recorded: list[Tensor] = []
    router = generator.expert_weights

    def record(features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        recorded.append(router(features, image_sizes))
        return recorded[-1]

    with patch.object(generator, "expert_weights", record):
        yield recorded


@contextmanager
def given_weights(generator: DynamicProposalGenerator, weights: Tensor) -> Iterator[None]:
    """Makes the generator take these (N, E, P) weights for the N images that come meanwhile, in order."""
    remaining = iter(weights)

    def give(features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        return torch.stack([next(remaining) for _ in image_sizes])

    with patch.object(generator, "expert_weights", give):
        yield


def argument_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    return parser


if __name__ == "__main__":
    main(argument_parser().parse_args())
