"""Dynamic proposal generators of few experts, with feature maps and images for them."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList

from dynamic_sparse_rcnn import DynamicProposalGenerator, TemperatureSchedule

SIZES = [(64, 96), (40, 120)]
IMAGES = ImageList.from_tensors([torch.zeros(3, *size) for size in SIZES], 32)
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
NO_ANNEALING = TemperatureSchedule(1.0, 1.0, 0)


def make_generator(num_experts=3, *, temperature=NO_ANNEALING, expert_init=0.5, init_boxes="grid"):
    return DynamicProposalGenerator(
        num_proposals=6,
        channels=8,
        init_boxes=init_boxes,
        num_experts=num_experts,
        expert_init=expert_init,
        levels={name: ShapeSpec(channels=8, stride=stride) for name, stride in STRIDES.items()},
        hidden_channels=12,
        pool_size=6,
        temperature=temperature,
    )


def make_features() -> dict[str, torch.Tensor]:
    height, width = IMAGES.tensor.shape[2:]
    return {name: torch.randn(2, 8, height // stride, width // stride) for name, stride in STRIDES.items()}
