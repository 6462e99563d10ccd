"""The divisor of summed losses."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor


def average_over_ranks(count: Tensor) -> Tensor:
    """Averages ``count`` over all ranks, and clamps it to at least 1. Every rank must call this.

    Args:
        count: float32, any shape.

    Returns:
        A tensor of the same shape, equal on all ranks.
    """
    total = count.clone()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)
