"""Constant padding is that of timm's convolutions where the stride divides the size."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from dynamic_sparse_rcnn.deploy.same_padding import with_constant_padding


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (2, 2, 1), (3, 4, 1), (3, 2, 2)])
def test_outputs_are_equal_and_the_original_stays(kernel, stride, dilation):
    torch.manual_seed(0)
    conv = Conv2dSame(2, 4, kernel, stride=stride, dilation=dilation, groups=2)
    original = nn.Sequential(conv, nn.ReLU()).double()
    changed = with_constant_padding(original)
    assert not any(type(module) is Conv2dSame for module in changed.children())
    assert original[0] is conv
    images = torch.randn(2, 2, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(changed(images), original(images), rtol=0, atol=0)
