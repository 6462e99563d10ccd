"""Exported files that the tests share: an export takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from dynamic_sparse_rcnn import Predictor
from dynamic_sparse_rcnn.deploy.export import export_onnx


@pytest.fixture(scope="session")
def shapes_detector() -> nn.Module:
    """The trained detector of shapes, on the CPU."""
    return Predictor(device="cpu").model


@pytest.fixture(scope="session")
def shapes_onnx(shapes_detector: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an ONNX file, of any size and number of images."""
    path = tmp_path_factory.mktemp("exported") / "shapes.onnx"
    export_onnx(shapes_detector, path)
    return path
