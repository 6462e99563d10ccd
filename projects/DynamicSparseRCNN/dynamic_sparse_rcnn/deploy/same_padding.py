"""TensorFlow's "same" padding without looking at the size of an image."""

from __future__ import annotations

import copy
import importlib.util

from torch import nn


def with_constant_padding(detector: nn.Module) -> nn.Module:
    """A copy, where it is needed, of a detector whose convolutions of TensorFlow's kind pad by constants.

    timm computes their padding from the size of the map, which ``torch.export`` has to follow as a formula through the
    whole backbone: minutes for an EfficientNet. Where the stride divides the size, as in images that are padded to a
    multiple of the backbone's strides, the padding is always the same.
    """
    if importlib.util.find_spec("timm") is None:
        return detector
    from timm.layers import Conv2dSame

    if not any(isinstance(module, Conv2dSame) for module in detector.modules()):
        return detector
    detector = copy.deepcopy(detector)
    for parent in list(detector.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame):
                padding = nn.ZeroPad2d(_constant_padding(child))
                child.__class__ = nn.Conv2d  # which does not pad: timm's gives it no padding of its own
                setattr(parent, name, nn.Sequential(padding, child))
    return detector


def _constant_padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top and bottom, for maps whose size the stride divides."""
    sides = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    rows, columns = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in sides)
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
