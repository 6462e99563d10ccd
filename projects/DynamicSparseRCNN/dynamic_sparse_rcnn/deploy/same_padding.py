"""TensorFlow's "same" padding without looking at the size of an image."""

from __future__ import annotations

import copy
import importlib.util

import torch.nn.functional as F
from torch import Tensor, nn


def with_constant_padding(detector: nn.Module) -> nn.Module:
    """A copy of a detector whose convolutions of TensorFlow's kind pad by constants.

    timm computes their padding from the size of the map, which ``torch.export`` has to follow as a formula through the
    whole backbone: minutes for an EfficientNet. Where the stride divides the size, as in images that are padded to a
    multiple of the backbone's strides, the padding is always the same.
    """
    if importlib.util.find_spec("timm") is None:
        return detector
    from timm.layers import Conv2dSame

    detector = copy.deepcopy(detector)
    for parent in list(detector.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _ConstantPadding(child))
    return detector


class _ConstantPadding(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        sides = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
        rows, columns = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in sides)
        self.padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride), of sizes that the stride divides."""
        conv = self.conv
        return F.conv2d(F.pad(x, self.padding), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
