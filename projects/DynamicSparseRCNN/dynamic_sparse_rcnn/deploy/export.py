"""Writes a detector to a file that runs without PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .exportable import INPUT_NAMES, OUTPUT_NAMES, ExportableDetector
from .suppression import onnx_translations, suppress_in_onnx

# Of the traced image, in the detector's divisibility: unequal, and neither 0 nor 1, which would be taken for constants.
_TRACED_ROWS, _TRACED_COLUMNS = 3, 4


def export_onnx(
    detector: nn.Module, path: str | Path, *, size: tuple[int, int] | None = None, with_nms: bool = True
) -> None:
    """Writes an ONNX file; see :class:`ExportableDetector` for its inputs and outputs.

    Args:
        detector: a Sparse R-CNN, in evaluation mode, on the CPU.
        path: of the file.
        size: height and width of the input; None: they are dynamic, as the number of images always is.
        with_nms: whether boxes that overlap are dropped within, where the detector does so.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: the detector, or the size, cannot be exported.
    """
    exportable = ExportableDetector(detector, suppress_in_onnx if with_nms else None).eval()
    inputs, dynamic_shapes = trace_inputs(exportable, size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own making
        program = torch.onnx.export(
            exportable,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=INPUT_NAMES,
            output_names=OUTPUT_NAMES,
            dynamic_shapes=dynamic_shapes,
            custom_translation_table=onnx_translations(),
        )
    assert program is not None
    program.save(str(path))


def trace_inputs(
    exportable: ExportableDetector, size: tuple[int, int] | None
) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Example inputs for ``torch.export``, and which of their sizes are dynamic.

    Raises:
        ValueError: the size is no multiple of what the detector needs.
    """
    unit = exportable.divisibility
    if size is not None and (min(size) < 1 or size[0] % unit or size[1] % unit):
        raise ValueError(f"the size {size[0]}x{size[1]} cannot be exported: use multiples of {unit}")
    height, width = size or (_TRACED_ROWS * unit, _TRACED_COLUMNS * unit)
    sizes = torch.tensor([[height, width]] * 2)
    batch = torch.export.Dim("batch", min=1)
    images: dict[int, Any] = {0: batch}
    if size is None:
        images |= {2: unit * torch.export.Dim("rows", min=1), 3: unit * torch.export.Dim("columns", min=1)}
    inputs = torch.zeros(2, 3, height, width, dtype=torch.uint8), sizes, sizes.clone()
    return inputs, (images, {0: batch}, {0: batch})
