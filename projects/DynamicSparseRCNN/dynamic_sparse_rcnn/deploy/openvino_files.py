"""OpenVINO's files: written with the boxes' arithmetic marked as float32, whatever the rest is run in."""

from __future__ import annotations

import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import import_extra
from ..file_io import whole_file
from .metadata import ExportMetadata

#: Where in OpenVINO's runtime information the metadata are.
SECTION = "sparse_rcnn"
# Operations whose results are features; boxes are computed from them, but they are not boxes themselves.
_OF_FEATURES = ("MatMul", "Convolution", "GroupConvolution", "ROIAlign")
# How OpenVINO's own compression marks operations that have to stay in float32.
_KEPT_IN_FLOAT32 = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}


def save_openvino(model: Any, path: str | Path, metadata: ExportMetadata) -> None:
    """Writes an ``openvino.Model`` to ``path`` (.xml) and its weights beside it (.bin).

    Under bfloat16 OpenVINO would round what leads to a RoI, which then is off by pixels: from 1024 on, bfloat16 counts
    in steps of 8. What computes boxes is marked, so that it stays in float32.
    """
    openvino = import_extra("openvino", "openvino")
    path = Path(path)
    for name, value in metadata.to_entries().items():
        model.set_rt_info(value, [SECTION, name])
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / path.name
        openvino.save_model(model, partial, compress_to_fp16=metadata.precision == "float16")
        tree = ElementTree.parse(partial)
        _mark(
            tree.getroot(), {x.get_friendly_name() for x in _operations_on_boxes(openvino.Core().read_model(partial))}
        )
        # The weights first: the .xml is never there without them.
        with whole_file(path.with_suffix(".bin")) as file, partial.with_suffix(".bin").open("rb") as weights:
            shutil.copyfileobj(weights, file)
        with whole_file(path) as file:
            tree.write(file)


def _operations_on_boxes(model: Any) -> Iterator[Any]:
    """What RoIs and detections are computed by, back to the features."""
    waiting = []
    for operation in model.get_ops():
        if operation.get_type_name() == "ROIAlign":
            waiting += [operation.input_value(1), operation.input_value(2)]  # all inputs but the maps
        elif operation.get_type_name() in ("Result", "NonMaxSuppression"):
            waiting += operation.input_values()
    seen = set()
    while waiting:
        operation = waiting.pop().get_node()
        if operation.get_friendly_name() in seen or operation.get_type_name() in _OF_FEATURES:
            continue
        seen.add(operation.get_friendly_name())
        yield operation
        waiting += operation.input_values()


def _mark(root: ElementTree.Element, names: set[str]) -> None:
    layers = root.find("layers")
    assert layers is not None
    for layer in layers:
        if layer.get("name") in names and layer.get("type") != "Const":
            information = layer.find("rt_info")
            if information is None:
                information = ElementTree.Element("rt_info")
                layer.insert(0 if layer.find("data") is None else 1, information)
            if all(entry.get("name") != _KEPT_IN_FLOAT32["name"] for entry in information):
                ElementTree.SubElement(information, "attribute", _KEPT_IN_FLOAT32)
