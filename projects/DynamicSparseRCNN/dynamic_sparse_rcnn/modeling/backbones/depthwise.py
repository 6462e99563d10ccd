"""Depthwise convolutions that train in float32 on CPUs, also under autocast."""

from __future__ import annotations

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn


def train_depthwise_in_float32(model: nn.Module) -> None:
    """Changes a model's depthwise convolutions in place; their names and parameters stay.

    On CPUs, PyTorch's backward pass of a depthwise convolution is several times as slow in bfloat16 as in float32 with
    channels last, and was half of the training step of an EfficientNet.
    """
    for module in model.modules():
        twin = _TWINS.get(type(module))
        if twin and isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.__class__ = twin


class _Float32Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), in float32 where a CPU trains."""
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class _Float32Conv2dSame(_Float32Conv2d, Conv2dSame):
    pass


_TWINS: dict[type[nn.Module], type[nn.Conv2d]] = {nn.Conv2d: _Float32Conv2d, Conv2dSame: _Float32Conv2dSame}
