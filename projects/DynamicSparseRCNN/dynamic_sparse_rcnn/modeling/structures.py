"""The typed values that pass between generator, head, cost model, matcher and criterion.

Legend of the shapes, used throughout the package: ``S`` stages, ``B`` images, ``P`` proposals,
``G`` most ground truths of an image in the batch, ``K`` classes, ``C`` channels.
Boxes are absolute XYXY pixels of the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

#: detectron2's dictionary of one image, see its "Use Models": ``image``, and where they are known ``height``, ``width``
#: and ``instances``.
ModelInput: TypeAlias = dict[str, Any]

#: The ``Assignment.gt_index`` of a proposal that learns to be background.
BACKGROUND = -1


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected {expected}")


@dataclass(frozen=True)
class StagePredictions:
    """What the head predicts, for all stages and images.

    A head that predicts more has a dataclass of its own, derived from this one, whose further fields are (S, B, ...).

    Attributes:
        logits: (S, B, P, K) class logits before the sigmoid.
        boxes: (S, B, P, 4) float32, absolute XYXY pixels of the network input.
        initial_boxes: (B, P, 4) float32, likewise: what the first stage started from; None where nobody asks.
    """

    logits: Tensor
    boxes: Tensor
    initial_boxes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logits.dim() != 4:
            raise ValueError(f"logits must be (S, B, P, K), got {tuple(self.logits.shape)}")
        _check_shape("boxes", self.boxes, (*self.logits.shape[:3], 4))
        if self.initial_boxes is not None:
            _check_shape("initial_boxes", self.initial_boxes, (*self.logits.shape[1:3], 4))

    @property
    def last(self) -> StagePredictions:
        """The last stage alone, (1, B, P, .)."""
        return self.stage(len(self.logits) - 1)

    def stage(self, index: int) -> StagePredictions:
        """One stage alone, (1, B, P, .), counted from 0."""
        return replace(self, **{name: getattr(self, name)[index : index + 1] for name in self._names_by_stage()})

    def cat(self, *others: StagePredictions) -> StagePredictions:
        """These stages, then those of others of the same class."""
        stages = (self, *others)
        return replace(self, **{name: torch.cat([getattr(x, name) for x in stages]) for name in self._names_by_stage()})

    def _names_by_stage(self) -> list[str]:
        return [field.name for field in fields(self) if field.name != "initial_boxes"]


@dataclass(frozen=True)
class BatchedTargets:
    """The ground truths of a batch, padded to the same number an image.

    For losses that need more of them there can be a dataclass derived from this one, with a :meth:`from_instances` that
    fills in its further fields.

    Attributes:
        boxes: (B, G, 4) float32, absolute XYXY pixels; rows of padding are harmless unit boxes.
        classes: (B, G) int64 in [0, K); 0 in the padding.
        valid: (B, G) bool, False in the padding and for boxes without extent, which nothing can learn.
        image_whwh: (B, 4) float32, width, height, width, height of each image without its padding.
        crowd: (B, G) bool, True for regions with more objects than are annotated (``valid`` is False there); None
            where nothing is known of any.

    ``G`` is at least 1, so that gathering works in a batch without any ground truth.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor
    image_whwh: Tensor
    crowd: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.classes.shape)
        if len(shape) != 2 or shape[1] < 1:
            raise ValueError(f"classes must be (B, G) with G >= 1, got {shape}")
        _check_shape("boxes", self.boxes, (*shape, 4))
        _check_shape("valid", self.valid, shape)
        _check_shape("image_whwh", self.image_whwh, (shape[0], 4))
        if self.crowd is not None:
            _check_shape("crowd", self.crowd, shape)

    @property
    def number(self) -> Tensor:
        """(1,) float32, how many ground truths there are to learn."""
        return self.valid.sum().float()[None]

    @classmethod
    def from_instances(cls, instances: Sequence[Instances], device: torch.device) -> BatchedTargets:
        """Batches detectron2's ground truths (fields ``gt_boxes``, ``gt_classes`` and perhaps ``gt_is_crowd``).

        Args:
            instances: of each image, all on one device.
            device: of the batch.
        """
        # Padded where they are, on the host as mappers leave them: few copies go to the device, and wait for nothing.
        boxes = [x.gt_boxes.tensor.float() for x in instances]
        classes = [x.gt_classes.long() for x in instances]
        if not any(len(x) for x in instances):
            boxes, classes = [b.new_zeros(1, 4) for b in boxes], [c.new_zeros(1) for c in classes]
        padded_boxes = pad_sequence(boxes, batch_first=True)
        counts = integers_on_device([len(x) for x in instances], padded_boxes.device)
        valid = torch.arange(padded_boxes.shape[1], device=padded_boxes.device) < counts[:, None]
        valid &= (padded_boxes[..., 2:] > padded_boxes[..., :2]).all(-1)
        unit_box = integers_on_device([0, 0, 1, 1], padded_boxes.device).float()
        crowd = _pad_crowd(instances, valid)
        return cls(
            boxes=_copy(torch.where(valid[..., None], padded_boxes, unit_box), device),
            classes=_copy(pad_sequence(classes, batch_first=True), device),
            valid=_copy(valid if crowd is None else valid & ~crowd, device),
            image_whwh=image_sizes_to_whwh([x.image_size for x in instances], device),
            crowd=None if crowd is None else _copy(crowd, device),
        )


def _pad_crowd(instances: Sequence[Instances], valid: Tensor) -> Tensor | None:
    """(B, G) bool, the crowd regions among the boxes of some extent; None where no image can have any."""
    if not any(x.has("gt_is_crowd") for x in instances):
        return None
    crowd = torch.zeros_like(valid)
    for row, x in zip(crowd, instances, strict=True):
        if x.has("gt_is_crowd"):
            row[: len(x)] = x.gt_is_crowd.to(row.device)
    return crowd & valid


@dataclass(frozen=True)
class MatchCosts:
    """What it costs to make proposal p learn from ground truth g, for all stages and images.

    Attributes:
        cost: (S, B, P, G) float32, relative to making the proposal background, which costs 0.
        iou: (S, B, P, G) float32 in [0, 1], of predicted and true boxes.
        valid: (B, G) bool, False where a column is padding; its costs mean nothing.
    """

    cost: Tensor
    iou: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        if self.cost.dim() != 4:
            raise ValueError(f"cost must be (S, B, P, G), got {tuple(self.cost.shape)}")
        _check_shape("iou", self.iou, tuple(self.cost.shape))
        _check_shape("valid", self.valid, (self.cost.shape[1], self.cost.shape[3]))


@dataclass(frozen=True)
class Assignment:
    """Which ground truth each proposal learns from.

    Attributes:
        gt_index: (S, B, P) int64 in [0, G), or ``BACKGROUND``.
        supply: (S, B, G) float32, the units of each ground truth that the matcher distributed; None where it
            distributes one each.
        residual: (S, B) float32, by how many units the solution misses the supply; None where it is exact.
    """

    gt_index: Tensor
    supply: Tensor | None = None
    residual: Tensor | None = None

    def __post_init__(self) -> None:
        if self.gt_index.dim() != 3 or self.gt_index.dtype != torch.int64:
            raise ValueError(
                f"gt_index must be (S, B, P) int64, got {tuple(self.gt_index.shape)} {self.gt_index.dtype}"
            )

    @property
    def positive(self) -> Tensor:
        """(S, B, P) bool: the proposals that learn from a ground truth."""
        return self.gt_index != BACKGROUND


def image_sizes_to_whwh(image_sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Turns ``(height, width)`` pairs into (B, 4) float32 rows of width, height, width, height."""
    return integers_on_device([(w, h, w, h) for h, w in image_sizes], device).float()


def integers_on_device(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """An int64 tensor of what the host knows, without waiting for the device, as ``torch.tensor`` would."""
    return _copy(torch.tensor(values, dtype=torch.int64), device)


def _copy(values: Tensor, device: torch.device) -> Tensor:
    """Few values, to a GPU without waiting for it: of memory that is not pinned CUDA takes a copy before it returns."""
    return values.to(device, non_blocking=device.type == "cuda")
