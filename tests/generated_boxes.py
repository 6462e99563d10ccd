"""Random boxes."""

from __future__ import annotations

import torch


def random_boxes(number: int, height: int, width: int) -> torch.Tensor:
    """(number, 4) float32 XYXY inside the image, at least 2 pixels wide and high."""
    size = torch.tensor([width, height], dtype=torch.float32)
    extent = 2 + torch.rand(number, 2) * (size / 2 - 2)
    left_top = torch.rand(number, 2) * (size - extent)
    return torch.cat([left_top, left_top + extent], dim=1)
