"""Crowd regions (COCO's ``iscrowd``): regions with more objects than are annotated."""

from __future__ import annotations

import torch
from torch import Tensor

from ..structures import BatchedTargets

# Minimum share of a box's area inside one region; as in COCO's evaluation at its lowest IoU threshold.
_MIN_SHARE = 0.5


@torch.no_grad()
def inside_crowd(boxes: Tensor, targets: BatchedTargets) -> Tensor:
    """Finds the boxes with at least half of their area inside one crowd region of their image.

    Args:
        boxes: (S, B, P, 4) absolute XYXY pixels.
        targets: ``crowd`` marks which of its boxes are crowd regions; None: none is.

    Returns:
        (S, B, P) bool.
    """
    if targets.crowd is None:
        return torch.zeros(boxes.shape[:3], dtype=torch.bool, device=boxes.device)
    own, regions = boxes[..., None, :], targets.boxes[:, None]
    sides = torch.minimum(own[..., 2:], regions[..., 2:]) - torch.maximum(own[..., :2], regions[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    inside = (shared >= _MIN_SHARE * area[..., None]) & (shared > 0)
    return (inside & targets.crowd[:, None]).any(-1)
