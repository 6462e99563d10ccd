"""Exported files that the tests share: an export takes seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from exported_detections import SHAPES, TINY
from filelock import FileLock
from torch import nn

from dynamic_sparse_rcnn import Predictor
from dynamic_sparse_rcnn.cli import main
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.deploy.export import export_onnx, export_torch
from dynamic_sparse_rcnn.deploy.openvino_files import save_openvino
from dynamic_sparse_rcnn.prediction.loading import DEFAULT_CONFIG


@pytest.fixture(scope="session")
def shapes_detector() -> nn.Module:
    """The trained detector of shapes, on the CPU."""
    return Predictor(device="cpu").model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the test processes share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)
    return folder


def written_once(path: Path, write: Callable[[Path], object]) -> Path:
    """The file, which the first process that wants it writes."""
    with FileLock(path.with_suffix(f"{path.suffix}.lock")):
        if not path.is_file():
            write(path)
    return path


@pytest.fixture(scope="session")
def shapes_onnx(exported: Path) -> Path:
    """The same as an ONNX file, of any size and number of images, as the command writes it."""
    return written_once(exported / "shapes.onnx", lambda path: main(["export", DEFAULT_CONFIG, "--output", str(path)]))


@pytest.fixture(scope="session")
def shapes_openvino(exported: Path, shapes_onnx: Path) -> Path:
    """The same as an OpenVINO file."""
    import openvino

    model = openvino.Core().read_model(shapes_onnx)
    return written_once(exported / "shapes.xml", lambda path: save_openvino(model, path, SHAPES))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a data set of images like those that the detector of shapes was trained on."""
    paths = generate_shapes(tmp_path_factory.mktemp("drawn"), "val", ShapesConfig(num_images=60, image_size=128))
    return f"coco:{paths.json_path}:{paths.image_folder}"


@pytest.fixture
def tiny_detector(tiny_cfg: CfgNode) -> nn.Module:
    """An untrained detector of static proposals with NMS, the same for all tests; its boxes stay near a grid's."""
    tiny_cfg.MODEL.SparseRCNN.INIT_BOXES = "grid"
    tiny_cfg.MODEL.SparseRCNN.NMS_THRESHOLD = TINY.nms_threshold
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = TINY.num_detections
    torch.manual_seed(0)
    detector = build_model(tiny_cfg).eval()
    with torch.no_grad():
        for stage in detector.head.head_series:
            stage.bboxes_delta.weight.mul_(0.1)
    return detector


@pytest.fixture
def tiny_onnx(tiny_detector: nn.Module, exported: Path) -> Path:
    """It in ONNX, of one size and without NMS."""
    return written_once(exported / "tiny.onnx", lambda path: export_onnx(tiny_detector, path, TINY))


@pytest.fixture
def tiny_openvino(tiny_onnx: Path, exported: Path) -> Path:
    """It in OpenVINO, likewise."""
    import openvino

    model = openvino.Core().read_model(tiny_onnx)
    return written_once(exported / "tiny.xml", lambda path: save_openvino(model, path, TINY))


@pytest.fixture
def tiny_torch(tiny_detector: nn.Module, exported: Path) -> Path:
    """It as a program of PyTorch's, of any size and with NMS."""
    metadata = replace(TINY, size=None, nms_inside=True)
    return written_once(exported / "tiny.pt2", lambda path: export_torch(tiny_detector, path, metadata))
