"""Smaller weights, and 8-bit arithmetic where it costs no accuracy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.images import read_image
from ..errors import import_extra
from .inputs import Feed, prepare
from .metadata import ExportMetadata


def halve_weights(model: Any) -> None:
    """Stores the weights of an ``onnx.ModelProto`` in half precision; the arithmetic stays in float32."""
    import onnx
    from onnx import numpy_helper

    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        name, half = weight.name, numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def quantize(model: Any, files: Sequence[str], metadata: ExportMetadata) -> Any:
    """Has NNCF quantize the backbone of an ``onnx.ModelProto`` to 8 bits.

    All behind RoIAlign, and what RoIs are computed by, stays as it is: it is the smaller part of the work, and 8 bits
    there cost AP.

    Args:
        model: an exported detector.
        files: images that the ranges of activations are measured on.
        metadata: of the detector.

    Returns:
        The quantized model.

    Raises:
        ImportError: nncf is missing.
        ValueError: there are no images.
    """
    nncf = import_extra("nncf", "openvino")
    if not files:
        raise ValueError("int8 needs images to measure the ranges of activations on: name a data set (--calibration)")
    nncf.set_log_level(logging.ERROR)

    def read(file: str) -> Feed:
        image = read_image(file, metadata.image_format).transpose(2, 0, 1)
        return prepare([image], [image.shape[1:]], metadata)

    backbone = names_before_rois(model)
    return nncf.quantize(
        model,
        nncf.Dataset(files, read),
        subset_size=len(files),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(
            names=[node.name for node in model.graph.node if node.name not in backbone], validate=False
        ),
    )


def names_before_rois(model: Any) -> set[str]:
    """The nodes of an ``onnx.ModelProto`` that compute the maps which RoIs are pooled from."""
    makers = {output: node for node in model.graph.node for output in node.output}
    waiting = [node.input[0] for node in model.graph.node if node.op_type == "RoiAlign"]
    names: set[str] = set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            waiting += node.input
    return names
