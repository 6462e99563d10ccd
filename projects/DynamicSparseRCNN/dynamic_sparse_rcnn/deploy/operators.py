"""Operators for which export needs another form: non-maximum suppression of a batch, and RoIAlign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

#: (boxes (B, N, 4), scores (B, N), classes (B, N), number of classes, IoU threshold) to (B, N) bool: what stays.
Suppression = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]

_ONNX_INT64, _ONNX_BOOL = 7, 9


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, num_classes: int, iou_threshold: float) -> Tensor:
    """Finds the boxes that no better-scored box of their image and class overlaps.

    Needs no operator but torchvision's ``nms``.

    Args:
        boxes: (B, N, 4) absolute xyxy pixels, not negative.
        scores: (B, N).
        classes: (B, N) int64 in [0, K).
        num_classes: K.
        iou_threshold: boxes that overlap by more are dropped.

    Returns:
        (B, N) bool: the boxes that stay.
    """
    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    # Images and classes are moved apart, so that one call does them all. Float32 would lose pixels there.
    apart = (images * num_classes + classes) * (boxes.detach().amax() + 1).double()
    kept = nms((boxes.double() + apart[..., None]).flatten(0, 1), scores.double().flatten(), iou_threshold)
    keep = torch.zeros_like(scores, dtype=torch.bool).flatten()
    return keep.index_fill(0, kept, True).view(scores.shape)


#: The same as an operator of its own, which ``torch.onnx.export`` can translate.
suppress_in_onnx = torch.library.custom_op("dynamic_sparse_rcnn::suppress", mutates_args=())(suppress)


@suppress_in_onnx.register_fake
def _(boxes: Tensor, scores: Tensor, classes: Tensor, num_classes: int, iou_threshold: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """ONNX's forms, by operator, for ``torch.onnx.export``.

    Raises:
        ImportError: onnxscript is missing.
    """
    return {
        torch.ops.dynamic_sparse_rcnn.suppress.default: _onnx_suppress,
        torch.ops.torchvision.roi_align.default: _onnx_roi_align,
    }


def _onnx_suppress(boxes: Any, scores: Any, classes: Any, num_classes: int, iou_threshold: float) -> Any:
    """ONNX's NonMaxSuppression knows images and classes itself."""
    import onnxscript

    op: Any = onnxscript.opset18
    every_class = op.Constant(value_ints=list(range(num_classes)))
    in_class = op.Equal(op.Unsqueeze(classes, [1]), op.Unsqueeze(every_class, [0, 2]))
    # (B, K, N): what has no more than the threshold is passed over.
    scores_by_class = op.Where(in_class, op.Unsqueeze(scores, [1]), -1.0)
    most = op.Gather(op.Shape(scores), [1])
    kept = op.NonMaxSuppression(boxes, scores_by_class, most, [iou_threshold], [-0.5])
    # Rows of image, class and box.
    kept = op.Gather(kept, [0, 2], axis=1)
    yes = op.Expand(op.Constant(value_ints=[1]), op.Slice(op.Shape(kept), [0], [1]))
    keep = op.ScatterND(op.Expand(op.Constant(value_ints=[0]), op.Shape(scores)), kept, yes)
    return op.Cast(keep, to=_ONNX_BOOL)


def _onnx_roi_align(
    maps: Any,
    rois: Any,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Any:
    """As the exporter's own translation, but the columns are gathered, not sliced.

    OpenVINO makes one split of the slices, and loses with them that they were to stay in float32.
    """
    import onnxscript

    op: Any = onnxscript.opset18
    images = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=_ONNX_INT64)
    return op.RoiAlign(
        maps,
        op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1),
        images,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        output_height=pooled_height,
        output_width=pooled_width,
        sampling_ratio=max(0, sampling_ratio),
        spatial_scale=spatial_scale,
    )
