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


def has_idle_levels(detector: Any) -> bool:
    """Whether the backbone has layers of their own for levels that neither head nor router looks at.

    They get no gradients, which ``DistributedDataParallel`` waits for unless it is told to ``find_unused_parameters``.
    """
    if not hasattr(detector, "backbone") or not hasattr(getattr(detector, "head", None), "in_features"):
        return False
    backbone, head = detector.backbone, detector.head
    generator: Any = getattr(detector, "proposal_generator", None)
    used = {*head.in_features, *(generator.in_features if hasattr(generator, "router") else ())}
    parts = {part for name, _ in backbone.named_parameters() for part in name.split(".")}
    # Named fpn_output2 by detectron2's FPN, p2 by others and by blocks on its top.
    return any({level, f"fpn_output{level[1:]}"} & parts for level in backbone.output_shape().keys() - used)


def broadcast_buffers(model: nn.Module) -> None:
    """Gives all ranks the main process's buffers, in which each has statistics of its own batches."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
