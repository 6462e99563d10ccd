"""The processes among which torchrun shares a prediction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..engine.launch import join_group


@contextmanager
def processes_of_torchrun() -> Iterator[tuple[int, str | None]]:
    """Within, this process is one of those that torchrun has started, if it has.

    Yields:
        Its rank, and the device that it takes: a GPU of its own where there are GPUs, None for the default.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield 0, None
        return
    rank, local_rank, local_size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    device = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None
    # Gloo: what they tell each other is short, and on the CPU.
    with join_group("gloo", local_size, init_method="env://", rank=rank, world_size=world_size):
        yield rank, device
