"""What the processes of a run share: a device each, gradients, and batch statistics."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)


def usable_device(device: str) -> str:
    """The device of a config, or the CPU where there is no CUDA device.

    That is logged, and warned of on a machine that has a GPU.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        level = logging.WARNING if shutil.which("nvidia-smi") else logging.INFO
        logger.log(level, f"The config's device is {device}, but PyTorch finds no CUDA device: using the CPU")
        return "cpu"
    return device


def distribute(model: nn.Module, **options: object) -> nn.Module:
    """detectron2's ``create_ddp_model``, on the device that the model is on, a GPU or the CPU.

    Args:
        model: of which each rank has a copy.
        options: of ``DistributedDataParallel``; buffers are not broadcast by default.
    """
    device = next(model.parameters()).device
    defaults = {
        "device_ids": [device.index] if device.type == "cuda" else None,
        "broadcast_buffers": False,
        "find_unused_parameters": has_idle_levels(model),
    }
    return create_ddp_model(model, **(defaults | options))


def has_idle_levels(detector: nn.Module) -> bool:
    """Whether the backbone has layers of their own for levels that neither head nor router looks at.

    They get no gradients, which ``DistributedDataParallel`` waits for unless it is told to ``find_unused_parameters``.
    """
    if not hasattr(detector, "backbone") or not hasattr(getattr(detector, "head", None), "in_features"):
        return False
    backbone: Any = detector.backbone
    head: Any = detector.head
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
