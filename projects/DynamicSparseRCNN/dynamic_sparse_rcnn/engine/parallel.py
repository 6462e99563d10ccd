"""What ranks have in common: a model whose gradients they share, and its statistics."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from torch import nn


def distribute(model: nn.Module, **options: Any) -> nn.Module:
    """detectron2's ``create_ddp_model``, on the device that the model is on, a GPU or the CPU.

    Args:
        model: of which each rank has a copy.
        options: of ``DistributedDataParallel``.
    """
    device = next(model.parameters()).device
    devices = [device.index] if device.type == "cuda" else None
    return create_ddp_model(model, **{"device_ids": devices, **options})


def broadcast_buffers(model: nn.Module) -> None:
    """Gives all ranks the main process's buffers, in which each has statistics of its own batches."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
