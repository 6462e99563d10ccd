"""Typed values that pass between generator, head, cost model, matcher and criterion.

Shapes throughout the package: ``S`` stages, ``B`` images, ``P`` proposals, ``G`` maximum number of ground truths per
image in the batch, ``K`` classes, ``C`` channels. Boxes are in absolute XYXY pixels of the network input.
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

#: The ``Assignment.gt_index`` of background proposals.
BACKGROUND = -1


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected {expected}")


@dataclass(frozen=True)
class StagePredictions:
    """The head's predictions for all stages and images.

    A head that predicts more returns a subclass of this dataclass, with additional fields of shape (S, B, ...).

    Attributes:
        logits: (S, B, P, K) class logits before the sigmoid.
        boxes: (S, B, P, 4) float32, absolute XYXY pixels of the network input.
        initial_boxes: (B, P, 4) float32, absolute XYXY pixels: the boxes that the first stage refined, if known.
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
        """Only the last stage, (1, B, P, .)."""
        return self.stage(len(self.logits) - 1)

    def stage(self, index: int) -> StagePredictions:
        """Returns only one stage, (1, B, P, .), counted from 0."""
        return replace(self, **{name: getattr(self, name)[index : index + 1] for name in self._names_by_stage()})

    def cat(self, *others: StagePredictions) -> StagePredictions:
        """Concatenates these stages with those of ``others``, which are of the same class."""
        stages = (self, *others)
        return replace(self, **{name: torch.cat([getattr(x, name) for x in stages]) for name in self._names_by_stage()})

    def _names_by_stage(self) -> list[str]:
        return [field.name for field in fields(self) if field.name != "initial_boxes"]


@dataclass(frozen=True)
class BatchedTargets:
    """The ground truths of a batch, padded to the same number per image.

    Losses that need more ground truth use a subclass of this dataclass, whose :meth:`from_instances` fills in the
    additional fields.

    Attributes:
        boxes: (B, G, 4) float32, absolute XYXY pixels; padding rows are unit boxes.
        classes: (B, G) int64 in [0, K); 0 in the padding.
        valid: (B, G) bool, False for padding and for boxes without extent, which cannot be learned.
        image_whwh: (B, 4) float32, width, height, width, height of each image without padding.
        crowd: (B, G) bool, True for crowd regions, where ``valid`` is False; None if there is no information about
            them.

    ``G`` is at least 1, so that gathering works in a batch without ground truths.
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
        """(1,) float32, the number of valid ground truths."""
        return self.valid.sum().float()[None]

    @classmethod
    def from_instances(cls, instances: Sequence[Instances], device: torch.device) -> BatchedTargets:
        """Batches detectron2's ground truths (fields ``gt_boxes``, ``gt_classes`` and optionally ``gt_is_crowd``).

        Args:
            instances: the ground truths of each image, all on the same device.
            device: device of the result.
        """
        # Padded on the host, where mappers leave them, so that only a few asynchronous copies are needed.
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
    """Returns (B, G) bool, the crowd regions that have an extent; None if no image has the field."""
    if not any(x.has("gt_is_crowd") for x in instances):
        return None
    crowd = torch.zeros_like(valid)
    for row, x in zip(crowd, instances, strict=True):
        if x.has("gt_is_crowd"):
            row[: len(x)] = x.gt_is_crowd.to(row.device)
    return crowd & valid


@dataclass(frozen=True)
class MatchCosts:
    """The costs of assigning ground truths to proposals, for all stages and images.

    Attributes:
        cost: (S, B, P, G) float32, relative to background, which costs 0.
        iou: (S, B, P, G) float32 in [0, 1], IoU of predicted and ground truth boxes.
        valid: (B, G) bool, False for padding, whose costs are meaningless.
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
    """The ground truth of each proposal.

    Attributes:
        gt_index: (S, B, P) int64 in [0, G), or ``BACKGROUND``.
        supply: (S, B, G) float32, units of each ground truth in optimal transport; None for other matchers.
        residual: (S, B) float32, the largest deviation of the solution from the supply, in units; None if it is exact.
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
        """(S, B, P) bool: the proposals that have a ground truth."""
        return self.gt_index != BACKGROUND


def image_sizes_to_whwh(image_sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Converts ``(height, width)`` pairs to (B, 4) float32 rows of width, height, width, height."""
    return integers_on_device([(w, h, w, h) for h, w in image_sizes], device).float()


def integers_on_device(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Creates an int64 tensor without synchronizing with the device, unlike ``torch.tensor(.., device=..)``."""
    return _copy(torch.tensor(values, dtype=torch.int64), device)


def _copy(values: Tensor, device: torch.device) -> Tensor:
    """Copies a small tensor asynchronously. CUDA stages small copies from pageable memory before it returns."""
    return values.to(device, non_blocking=device.type == "cuda")
