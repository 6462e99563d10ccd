"""How large and how many the boxes of a data set are, against what a detector expects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, BoxMode
from tabulate import tabulate

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_QUANTILE_NAMES = ("least", "5 %", "25 %", "median", "75 %", "95 %", "most")
# Where detectron2's pooler sends a box of this size, in pixels of the network input.
_CANONICAL_SIZE, _CANONICAL_LEVEL = 224, 4


@dataclass(frozen=True)
class BoxStatistics:
    """Boxes of a data set as the network sees them at its test size; crowds are not among them.

    Attributes:
        sides: (N,) square roots of their areas, in pixels of the network input.
        level_names: feature maps that boxes are pooled from, the finest first.
        level_counts: number of boxes that each of them gets.
        per_image: (I,) number of boxes of each image.
        num_proposals: of the detector.
    """

    sides: np.ndarray
    level_names: tuple[str, ...]
    level_counts: tuple[int, ...]
    per_image: np.ndarray
    num_proposals: int

    def summary(self) -> str:
        """Two tables."""
        shares = [f"{count / max(1, len(self.sides)):.1%}" for count in self.level_counts]
        levels = tabulate(
            [["boxes", *self.level_counts], ["share", *shares]], headers=["pooled from", *self.level_names]
        )
        rows = [["box size (pixels)", *_quantiles(self.sides)], ["boxes an image", *_quantiles(self.per_image)]]
        sizes = tabulate(rows, headers=["at the network's input", *_QUANTILE_NAMES])
        full = int((self.per_image > self.num_proposals).sum())
        more = f"{full} of {len(self.per_image)} images have more boxes than NUM_PROPOSALS {self.num_proposals}"
        return "\n".join(f"  {line}" for line in [*levels.splitlines(), *sizes.splitlines(), more])


def measure_boxes(dicts: Sequence[dict[str, Any]], cfg: CfgNode) -> BoxStatistics:
    """Measures the boxes of detectron2's data set dictionaries, resized as for a test.

    Args:
        dicts: as ``load_checked_dataset`` gives them.
        cfg: for the size of the network's input, its feature maps and its proposals.
    """
    names = tuple(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    levels = [int(re.sub(r"\D", "", name)) for name in names]
    per_image = [_network_boxes(record, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) for record in dicts]
    boxes = torch.as_tensor(np.concatenate([np.zeros((0, 4)), *per_image]))
    counts = np.zeros(len(names), dtype=np.int64)
    if len(boxes):
        assigned = assign_boxes_to_levels([Boxes(boxes)], min(levels), max(levels), _CANONICAL_SIZE, _CANONICAL_LEVEL)
        counts = np.bincount(assigned.numpy(), minlength=len(names))
    return BoxStatistics(
        sides=(boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().numpy(),
        level_names=names,
        level_counts=tuple(counts.tolist()),
        per_image=np.array([len(own) for own in per_image], dtype=np.int64),
        num_proposals=cfg.MODEL.SparseRCNN.NUM_PROPOSALS,
    )


def _network_boxes(record: dict[str, Any], short_side: int, long_side: int) -> np.ndarray:
    """(N, 4) xyxy pixels of the network's input, clipped to the image; ``short_side`` 0 leaves images as they are."""
    objects = [o for o in record.get("annotations", ()) if not o.get("iscrowd", 0)]
    boxes = [BoxMode.convert(list(o["bbox"]), o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
    height, width = record["height"], record["width"]
    clipped = np.array(boxes, dtype=np.float64).reshape(-1, 4).clip(0, [width, height, width, height])
    scale = min(short_side / min(height, width), long_side / max(height, width)) if short_side else 1.0
    return clipped * scale


def _quantiles(values: np.ndarray) -> list[str]:
    if not len(values):
        return ["-"] * len(_QUANTILES)
    return [f"{value:.0f}" for value in np.quantile(values, _QUANTILES)]
