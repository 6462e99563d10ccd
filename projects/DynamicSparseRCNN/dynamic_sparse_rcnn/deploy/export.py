"""Writes a detector to a file that runs without this package."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError

from ..errors import first_line, import_extra
from ..file_io import whole_file
from .exportable import INPUT_NAMES, OUTPUT_NAMES, ExportableDetector
from .metadata import ExportMetadata
from .openvino_files import save_openvino
from .operators import onnx_translations, suppress, suppress_in_onnx
from .quantization import halve_weights, quantize
from .same_padding import with_constant_padding
from .verification import verified_file

# Of the traced image, in the detector's divisibility: unequal, and neither 0 nor 1, which would be taken for constants.
_TRACED_ROWS, _TRACED_COLUMNS = 3, 4


def export_onnx(
    detector: nn.Module, path: str | Path, metadata: ExportMetadata, calibration: Sequence[str] = ()
) -> None:
    """Writes an ONNX file; see :class:`ExportableDetector` for its inputs and outputs.

    Args:
        detector: a Sparse R-CNN, in evaluation mode, on the CPU.
        path: of the file.
        metadata: what the file says of the detector. ``size``, ``nms_inside`` and ``precision`` also decide what is
            written.
        calibration: image files like those that the detector is for; needed for ``int8``.

    Raises:
        ImportError: a package is missing; says what brings it.
        ValueError: the detector, the size or the precision cannot be exported, or the file would give other detections
            than the detector.
    """
    model = _make_onnx(detector, metadata, calibration)
    if metadata.precision == "float16":
        halve_weights(model)
    import_extra("onnx", "onnx").helper.set_model_props(model, metadata.to_entries())
    _write(model.SerializeToString(), detector, path, metadata)


def export_openvino(
    detector: nn.Module, path: str | Path, metadata: ExportMetadata, calibration: Sequence[str] = ()
) -> None:
    """Writes an OpenVINO file (``.xml``, with its weights beside it in ``.bin``), by way of ONNX.

    Args, Raises: as :func:`export_onnx`.
    """
    openvino = import_extra("openvino", "openvino")
    model = _make_onnx(detector, metadata, calibration)
    with verified_file(detector, path, metadata) as partial:
        save_openvino(openvino.Core().read_model(model.SerializeToString()), partial, metadata)


def export_torch(
    detector: nn.Module, path: str | Path, metadata: ExportMetadata, calibration: Sequence[str] = ()
) -> None:
    """Writes a ``torch.export`` program, which runs with PyTorch and torchvision alone.

    Args, Raises: as :func:`export_onnx`, but the precision can only be ``float32``.
    """
    if metadata.precision != "float32":
        raise ValueError(f"torch programs are in float32, not in {metadata.precision}: export to onnx or openvino")
    exportable = ExportableDetector(with_constant_padding(detector), suppress if metadata.nms_inside else None).eval()
    inputs, dynamic_shapes = trace_inputs(exportable, metadata.size)
    with torch.no_grad(), _names_backbone(exportable, metadata.size):
        program = torch.export.export(exportable, inputs, dynamic_shapes=dynamic_shapes)
        content = io.BytesIO()
        torch.export.save(program, content, extra_files=metadata.to_entries())
        # For some backbones with windows, PyTorch saves a program that it cannot load: loading it is part of this.
        _write(content.getvalue(), detector, path, metadata)


#: By the name of the format.
EXPORTERS: dict[str, Callable[[nn.Module, str | Path, ExportMetadata, Sequence[str]], None]] = {
    "onnx": export_onnx,
    "openvino": export_openvino,
    "torch": export_torch,
}


def _make_onnx(detector: nn.Module, metadata: ExportMetadata, calibration: Sequence[str]) -> Any:
    """An ``onnx.ModelProto``, quantized if it is to be."""
    import_extra("onnxscript", "onnx")
    suppression = suppress_in_onnx if metadata.nms_inside else None
    exportable = ExportableDetector(with_constant_padding(detector), suppression).eval()
    inputs, dynamic_shapes = trace_inputs(exportable, metadata.size)
    with warnings.catch_warnings(), torch.no_grad(), _names_backbone(exportable, metadata.size):
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
    model = program.model_proto
    return quantize(model, calibration, metadata) if metadata.precision == "int8" else model


@contextmanager
def _names_backbone(exportable: ExportableDetector, size: tuple[int, int] | None) -> Iterator[None]:
    """Turns PyTorch's errors, which are pages long, into one that names what is not exported and what may help."""
    try:
        yield
    except (RuntimeError, UserError) as error:
        backbone = exportable.detector.backbone
        model = type(getattr(backbone, "bottom_up", backbone)).__name__
        remedy = (
            "give a fixed size (--size HxW), which some backbones need" if size is None else "take another backbone"
        )
        reason = first_line(error.__cause__ or error)
        raise ValueError(
            f"PyTorch cannot export this detector, with the backbone {model}: {remedy} ({reason})"
        ) from error


def _write(content: bytes, detector: nn.Module, path: str | Path, metadata: ExportMetadata) -> None:
    with verified_file(detector, path, metadata) as partial, whole_file(partial) as file:
        file.write(content)


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
    inputs = torch.zeros(2, exportable.channels, height, width, dtype=torch.uint8), sizes, sizes.clone()
    return inputs, (images, {0: batch}, {0: batch})
