"""RoIAlign for a cascade: all stages pool from one pyramid, whose gradient is computed once for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class LevelRoIs:
    """Those of the M RoIs that are pooled from one level of the pyramid.

    Attributes:
        rows: (n,) int64, which ones.
        rois: (n, 5) the number of the image, then absolute XYXY pixels.
    """

    rows: Tensor
    rois: Tensor


class SharedPyramid:
    """Feature maps of a batch that are pooled from several times; made by :meth:`CascadeROIPooler.share`.

    Attributes:
        maps: (B, C, H, W), finest first, in float32 or float64, contiguous.
        dtype: of the maps as they were given, and of what is pooled.
        token: without values; it ties what is pooled to the one backward pass of the maps. None: each RoIAlign has its
            own.
    """

    def __init__(self, maps: Sequence[Tensor], level_poolers: Sequence[ROIAlign] | None) -> None:
        """Args: the maps; what pools from each, if their gradients shall be computed once."""
        self.dtype = maps[0].dtype
        self.token: Tensor | None = None
        if level_poolers is not None:
            self.gradients = _RoIGradients(level_poolers, [x.shape for x in maps])
            self.token = _PyramidBackward.apply(self.gradients, *maps)
            maps = [x.detach() for x in maps]
        # RoIAlign takes boxes of the maps' type, and rounded to half precision they lose pixels.
        self.maps = [(x if x.dtype == torch.float64 else x.float()).contiguous() for x in maps]


class CascadeROIPooler(ROIPooler):
    """detectron2's ``ROIPooler`` for stages that pool from the same feature maps, one after the other::

        pyramid = pooler.share(maps)
        for ...:
            pooled = pooler(pyramid, boxes)

    Autograd runs RoIAlign's backward for each stage and level: each time a gradient as large as the map is filled with
    zeros, given the values of a few cells and added to that of the other stages. Here the gradients of what the stages
    pooled are collected, and RoIAlign's backward runs once a level, for the RoIs of all stages. Values are those of
    ``ROIPooler``, gradients too, up to the order in which floats are added. Gradients of gradients are an error, as
    RoIAlign's are. Called with a list of maps it is an ``ROIPooler`` without the sharing.
    """

    def __init__(
        self, output_size: int, scales: Sequence[float], sampling_ratio: int, pooler_type: str, **arguments: Any
    ) -> None:
        """
        Args:
            output_size: R, side of the pooled RoIs in cells.
            scales: of each map relative to the network's input, finest first: 1/4, 1/8, ..
            sampling_ratio: samples a cell and direction; 0: one for each cell of the map.
            pooler_type: ``ROIAlignV2`` or ``ROIAlign``.
            arguments: the others of ``ROIPooler``.

        Raises:
            ValueError: another ``pooler_type``.
        """
        if pooler_type not in ("ROIAlign", "ROIAlignV2"):
            raise ValueError(f"CascadeROIPooler is for ROIAlign and ROIAlignV2, not {pooler_type!r}: use ROIPooler")
        super().__init__(output_size, list(scales), sampling_ratio, pooler_type, **arguments)

    def share(self, maps: Sequence[Tensor]) -> SharedPyramid:
        """Prepares (B, C, H, W) maps, finest first, for being pooled from several times."""
        needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in maps)
        # Where torchvision would not use its compiled operator, or a trace would not see it.
        needs_plain = torch.jit.is_tracing() or (maps[0].is_cuda and torch.are_deterministic_algorithms_enabled())
        return SharedPyramid(maps, list(self.level_poolers) if needs_gradient and not needs_plain else None)

    def forward(self, x: SharedPyramid | list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            x: shared maps, or a list of maps (B, C, H, W), finest first.
            box_lists: those of each image, absolute XYXY pixels of the network's input; M in all.

        Returns:
            (M, C, R, R) in the maps' own type; zeros for boxes of no level, as those of NaN.
        """
        pyramid = x if isinstance(x, SharedPyramid) else SharedPyramid(x, None)
        levels = self._assign(box_lists, pyramid.maps[0].dtype)
        if pyramid.token is None:
            return self.pool(pyramid, levels, sum(map(len, box_lists)))
        pooled: Tensor = _StagePooling.apply(pyramid.token, pyramid, self, levels, sum(map(len, box_lists)))
        return pooled

    def pool(self, pyramid: SharedPyramid, levels: Sequence[LevelRoIs], number: int) -> Tensor:
        """(M, C, R, R) of the RoIs of each level, M being ``number``."""
        complete = sum(len(level.rows) for level in levels) == number
        shape = number, pyramid.maps[0].shape[1], *self.output_size
        pooled = (torch.empty if complete else torch.zeros)(shape, dtype=pyramid.dtype, device=pyramid.maps[0].device)
        for pooler, feature_map, level in zip(self.level_poolers, pyramid.maps, levels, strict=True):
            pooled.index_copy_(0, level.rows, pooler(feature_map, level.rois).to(pooled.dtype))
        return pooled

    def _assign(self, box_lists: list[Boxes], dtype: torch.dtype) -> list[LevelRoIs]:
        """Gives each box to the level that ``ROIPooler`` gives it to."""
        boxes = torch.cat([image_boxes.tensor.detach() for image_boxes in box_lists])
        # Made on the host, which knows it, and how long it is: on the device it would have to be waited for.
        counts = [len(image_boxes) for image_boxes in box_lists]
        image = torch.repeat_interleave(torch.tensor(counts), output_size=sum(counts))
        image = image.to(boxes.device, boxes.dtype, non_blocking=True)
        rois = torch.cat([image[:, None], boxes], dim=1).to(dtype)
        number = len(self.level_poolers)
        if number == 1:
            return [LevelRoIs(torch.arange(len(rois), device=rois.device), rois)]
        level = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        level, order = level.sort(stable=True)
        bounds = torch.searchsorted(level, torch.arange(number + 1, device=level.device))
        rois = rois[order]
        # The one look of the host at the device in a stage: operators have to know how many RoIs they get.
        return [LevelRoIs(order[start:end], rois[start:end]) for start, end in itertools.pairwise(bounds.tolist())]


class _RoIGradients:
    """Keeps the gradients of what the stages pooled until those of all stages are there."""

    def __init__(self, level_poolers: Sequence[ROIAlign], shapes: Sequence[torch.Size]) -> None:
        self.level_poolers = level_poolers
        self.shapes = shapes
        self._numbers = itertools.count()
        # By stage: one that is run again, after a backward pass that failed, does not count twice.
        self._of_stage: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def number_stage(self) -> int:
        """A number for one more stage."""
        return next(self._numbers)

    def put(self, stage: int, gradient: Tensor, levels: Sequence[LevelRoIs]) -> None:
        """Keeps a stage's gradient (M, C, R, R), level by level."""
        self._of_stage[stage] = [(gradient.index_select(0, level.rows), level.rois) for level in levels]

    def backward(self) -> Iterator[Tensor]:
        """(B, C, H, W) each, the gradients of the maps, finest first; those of the stages are then forgotten."""
        stages = list(self._of_stage.values())
        self._of_stage.clear()
        for shape, pooler in zip(self.shapes, self.level_poolers, strict=True):
            # Taken from the stages, so that those of one level at a time are there twice.
            gradients, all_rois = zip(*[stage.pop(0) for stage in stages], strict=True)
            rois = torch.cat(all_rois)
            yield torch.ops.torchvision._roi_align_backward(
                torch.cat(gradients).to(rois.dtype),
                rois,
                pooler.spatial_scale,
                *pooler.output_size,
                *shape,
                pooler.sampling_ratio,
                pooler.aligned,
            )


class _PyramidBackward(torch.autograd.Function):
    """Gives the token that the stages pool with; autograd comes back to it when it has been to all of them."""

    @staticmethod
    def forward(ctx: Any, gradients: _RoIGradients, *maps: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = [x.dtype for x in maps]
        return maps[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[gradient.to(dtype) for gradient, dtype in zip(ctx.gradients.backward(), ctx.dtypes, strict=True)]


class _StagePooling(torch.autograd.Function):
    """Pools the RoIs of a stage, and in the backward pass keeps their gradients for :class:`_PyramidBackward`."""

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        pyramid: SharedPyramid,
        pooler: CascadeROIPooler,
        levels: Sequence[LevelRoIs],
        number: int,
    ) -> Tensor:
        # Not the maps: RoIAlign's backward needs their shapes alone.
        ctx.gradients = pyramid.gradients
        ctx.stage = pyramid.gradients.number_stage()
        ctx.save_for_backward(*[x for level in levels for x in (level.rows, level.rois)])
        return pooler.pool(pyramid, levels, number)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        levels = [LevelRoIs(rows, rois) for rows, rois in zip(saved[::2], saved[1::2], strict=True)]
        ctx.gradients.put(ctx.stage, gradient, levels)
        return gradient.new_zeros(()), None, None, None, None
