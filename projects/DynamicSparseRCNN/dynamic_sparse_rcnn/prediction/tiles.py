"""Large images in overlapping tiles, so that objects stay large enough to be found.

(supervision's ``InferenceSlicer`` keeps the parts of objects that a tile cuts, as detections of their own.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import batched_nms

from .sources import Frame

#: Part of a tile's side that it shares with its neighbor. Smaller objects are whole in at least one tile.
OVERLAP = 0.2
# A box that comes this near to the edge of a tile, in pixels of the network input, may go on behind it.
_EDGE = 1.0
_NMS_THRESHOLD = 0.5


def split(frame: Frame, side: int) -> list[tuple[Frame, tuple[int, int]]]:
    """The tiles of an image, with the (x, y) of their upper left corners, after the image itself.

    An image that is not larger than a tile is its only tile.

    Args:
        frame: the image.
        side: of a tile, in pixels.
    """
    height, width = frame.pixels.shape[:2]
    parts = [(frame, (0, 0))]
    if max(height, width) > side:
        for y in _starts(height, side):
            for x in _starts(width, side):
                parts.append((Frame(frame.name, frame.pixels[y : y + side, x : x + side]), (x, y)))
    return parts


def _starts(size: int, side: int) -> list[int]:
    """Where tiles start on one axis: evenly, with at least :data:`OVERLAP`, from one end of the image to the other."""
    if size <= side:
        return [0]
    number = 1 + -int(-(size - side) // (side * (1 - OVERLAP)))
    return [round(index * (size - side) / (number - 1)) for index in range(number)]


def merge(
    found: Sequence[Instances], parts: Sequence[tuple[Frame, tuple[int, int]]], shrinkage: float = 1.0
) -> Instances:
    """The detections of an image, of those in it and its tiles (see :func:`split`), best first.

    Objects that a tile cuts are left to the other tiles and to the image as a whole; what several have found stays
    once (NMS by class). An image that is its only tile keeps its detections as they are.

    Args:
        found: ``pred_boxes`` (absolute xyxy pixels of the tile), ``scores`` and ``pred_classes`` for each part.
        parts: in the same order.
        shrinkage: pixels of a tile to one of the network input; below 1 it does not count.
    """
    if len(parts) == 1:
        return found[0]
    height, width = parts[0][0].pixels.shape[:2]
    kept = []
    for instances, (tile, (x, y)) in zip(found, parts, strict=True):
        tile_height, tile_width = tile.pixels.shape[:2]
        boxes = instances.pred_boxes.tensor
        # The edges that are not the image's own.
        inner = torch.tensor([x > 0, y > 0, x + tile_width < width, y + tile_height < height])
        limits = boxes.new_tensor([0, 0, tile_width, tile_height])
        whole = ~(((boxes - limits).abs() <= _EDGE * max(1.0, shrinkage)) & inner).any(1)
        moved = Instances((height, width), **instances.get_fields())
        moved.pred_boxes = Boxes(boxes + boxes.new_tensor([x, y, x, y]))
        kept.append(moved[whole])
    merged = Instances.cat(kept)
    best = batched_nms(merged.pred_boxes.tensor, merged.scores, merged.pred_classes, _NMS_THRESHOLD)
    return merged[best]
