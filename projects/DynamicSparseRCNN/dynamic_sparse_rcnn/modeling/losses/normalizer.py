"""What the summed losses of a batch are divided by."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor


def average_over_ranks(count: Tensor) -> Tensor:
    """The mean of ``count`` over all ranks, at least 1. Every rank must call it.

    Args:
        count: float32 of any shape; not changed.

    Returns:
        Tensor of the same shape, the same on every rank.
    """
    total = count.clone()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)
