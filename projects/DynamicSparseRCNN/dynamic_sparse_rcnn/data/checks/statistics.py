"""Sizes and numbers of a data set's boxes, compared with what a detector expects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from tabulate import tabulate

from ..records import BoxTable, Record

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_QUANTILE_NAMES = ("least", "5 %", "25 %", "median", "75 %", "95 %", "most")
# Where detectron2's pooler sends a box of this size, in pixels of the network input.
_CANONICAL_SIZE, _CANONICAL_LEVEL = 224, 4


@dataclass(frozen=True)
class BoxStatistics:
    """Boxes of a data set at the network's test size, without crowds.

    Attributes:
        sides: (N,) float64, square roots of their areas, in pixels of the network's input.
        level_names: feature maps that boxes are pooled from, finest first.
        level_counts: number of boxes pooled from each.
        per_image: (I,) int64, number of boxes of each image.
        num_proposals: the detector's.
    """

    sides: npt.NDArray[np.float64]
    level_names: tuple[str, ...]
    level_counts: tuple[int, ...]
    per_image: npt.NDArray[np.int64]
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


def measure_boxes(records: Sequence[Record], cfg: CfgNode) -> BoxStatistics:
    """Measures the boxes of a data set, resized as for a test.

    Args:
        records: as ``load_checked_dataset`` returns them.
        cfg: for the size of the network's input, its feature maps and its proposals.
    """
    names = tuple(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    levels = [int(re.sub(r"\D", "", name)) for name in names]
    table = BoxTable.from_records(records)
    boxes = torch.as_tensor(_network_boxes(table, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST))
    counts = np.zeros(len(names), dtype=np.int64)
    if len(boxes):
        assigned = assign_boxes_to_levels([Boxes(boxes)], min(levels), max(levels), _CANONICAL_SIZE, _CANONICAL_LEVEL)
        counts = np.bincount(assigned.numpy(), minlength=len(names))
    return BoxStatistics(
        sides=(boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().numpy(),
        level_names=names,
        level_counts=tuple(counts.tolist()),
        per_image=np.bincount(table.image[~table.crowd], minlength=len(records)),
        num_proposals=cfg.MODEL.SparseRCNN.NUM_PROPOSALS,
    )


def _network_boxes(table: BoxTable, short_side: int, long_side: int) -> npt.NDArray[np.float64]:
    """(N, 4) xyxy pixels of the network's input, clipped, without crowds; ``short_side`` 0: images are not resized."""
    sizes = table.image_sizes[~table.crowd]
    clipped = table.boxes[~table.crowd].clip(0, np.tile(sizes, 2))
    if not short_side:
        return clipped
    scale: npt.NDArray[np.float64] = np.minimum(short_side / sizes.min(1), long_side / sizes.max(1))
    return clipped * scale[:, None]


def _quantiles(values: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> list[str]:
    if not len(values):
        return ["-"] * len(_QUANTILES)
    return [f"{value:.0f}" for value in np.quantile(values, _QUANTILES)]
