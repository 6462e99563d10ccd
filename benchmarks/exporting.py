"""The detector as it is, compiled and exported: times and peak memory of one image."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from detectron2.data import transforms as T
from run_exported import peak_memory
from speed_report import Comparison
from timing import time_rounds
from workloads import Workload

from dynamic_sparse_rcnn import SparseRCNN, __version__
from dynamic_sparse_rcnn.deploy.backends import ExportedDetector
from dynamic_sparse_rcnn.deploy.export import EXPORTERS
from dynamic_sparse_rcnn.deploy.inputs import prepare
from dynamic_sparse_rcnn.deploy.metadata import ExportMetadata
from dynamic_sparse_rcnn.engine.precision import autocast
from dynamic_sparse_rcnn.engine.small_data import cpu_has_bfloat16
from dynamic_sparse_rcnn.file_io import write_image

# Images that the ranges of int8 are measured on: times do not depend on them.
_CALIBRATION_IMAGES = 2
_RUNS = 3
# As trained one to many.
_WITH_NMS = ["MODEL.SparseRCNN.NMS_THRESHOLD", "0.7"]
Call = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """One way to run a detector on one image.

    Attributes:
        whole: from an (H, W, 3) array to detections.
        inner: the same without resizing, normalizing in eager mode, and the structures of detections.
        memory: the command of a process that does it alone, for its memory.
    """

    whole: Call
    inner: Call
    memory: list[str]


def compare_exports(workload: Workload, repeats: int, ways: Sequence[str] = ()) -> Iterator[Comparison]:
    """Eager and exported; of ``ways`` alone, if there are any."""
    one = replace(workload, images=1)
    with tempfile.TemporaryDirectory() as folder:
        made = dict(make_ways(one, Path(folder), ways))
        for name, part in (
            ("inference of an exported detector, one image", "whole"),
            ("the same, inner part", "inner"),
        ):
            calls = {key: getattr(way, part) for key, way in made.items()}
            seconds = time_rounds(calls, repeats, one.device)
            yield Comparison("export", name, "ms", {k: [1000 * x for x in v] for k, v in seconds.items()})
        memory = {name: [peak_resident(way.memory)] for name, way in made.items() if way.memory}
        yield Comparison("export", "peak memory of the process", "MB", memory)


def make_ways(workload: Workload, folder: Path, wanted: Sequence[str] = ()) -> Iterator[tuple[str, Way]]:
    """What this machine can do of: eager, bfloat16, compiled, and each exported file."""
    cfg = workload.load_config(_WITH_NMS)
    detector = workload.make_detector(cfg).eval()
    image = workload.make_inputs(cfg.MODEL.SparseRCNN.NUM_CLASSES)[0]["image"]
    settings = workload.config, workload.height, workload.width, workload.proposals
    eager = [sys.executable, __file__, *map(str, settings)]

    def asked(name: str) -> bool:
        return not wanted or name in wanted

    yield "eager", run_eager(detector, image, None, eager)
    if asked("eager, bfloat16") and cpu_has_bfloat16():
        yield "eager, bfloat16", run_eager(detector, image, torch.bfloat16, [])
    if asked("torch.compile") and shutil.which("g++"):
        compiled = copy.deepcopy(detector)
        compiled.backbone.compile()
        for stage in compiled.head.head_series:
            stage.compile()
        yield "torch.compile", run_eager(compiled, image, None, [])
    files = {"ONNX Runtime": ("onnx", "float32"), "OpenVINO": ("openvino", "float32")}
    files |= {"ONNX Runtime, int8": ("onnx", "int8"), "OpenVINO, int8": ("openvino", "int8")}
    for name, (form, precision) in files.items():
        runs = {name: None} | ({f"{name}, bfloat16": "bfloat16"} if form == "openvino" and cpu_has_bfloat16() else {})
        if any(asked(key) for key in runs):
            path = export(detector, image, folder, form, precision)
            for key, arithmetic in runs.items():
                if asked(key):
                    yield key, run_file(path, image, arithmetic)


def run_eager(detector: SparseRCNN, image: torch.Tensor, dtype: torch.dtype | None, memory: list[str]) -> Way:
    """PyTorch."""
    pixels = image.permute(1, 2, 0).numpy()
    resize = T.AugmentationList([T.ResizeShortestEdge(min(image.shape[1:]), max(image.shape[1:]))])
    prepared = detector.preprocess_image([{"image": image}])

    @torch.no_grad()
    def whole() -> None:
        augmented = T.AugInput(pixels)
        resize(augmented)
        resized = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        with autocast(dtype, "cpu"):
            detector([{"image": resized}])

    @torch.no_grad()
    def inner() -> None:
        with autocast(dtype, "cpu"):
            detector.predict(prepared)

    return Way(whole, inner, memory)


def run_file(path: Path, image: torch.Tensor, precision: str | None) -> Way:
    """An exported file; its inner part is all that the file does, NMS too."""
    exported = ExportedDetector(path, precision=precision)
    feed = prepare([image.numpy()], [tuple(image.shape[1:])], exported.metadata)
    inputs = [{"image": image}]
    memory = [sys.executable, str(Path(__file__).with_name("run_exported.py")), str(path), precision or "float32"]
    return Way(lambda: exported(inputs), lambda: exported.runtime(feed), memory)


def export(detector: SparseRCNN, image: torch.Tensor, folder: Path, form: str, precision: str) -> Path:
    """Writes a file of the image's size."""
    height, width = (int(x) for x in image.shape[1:])
    metadata = ExportMetadata(
        sparse_rcnn_version=__version__,
        checkpoint_sha256="",
        class_names=(),
        category_ids=(),
        image_format="RGB",
        size=(height, width),
        divisibility=detector.backbone.size_divisibility,
        short_edge=0,
        max_size=0,
        score_threshold=0.5,
        nms_threshold=detector.nms_threshold,
        nms_inside=True,
        num_detections=detector.num_detections,
        precision=precision,
    )
    files = [str(folder / f"{number}.png") for number in range(_CALIBRATION_IMAGES)]
    for file in files:
        write_image(image.permute(1, 2, 0).numpy(), file)
    path = folder / f"{precision}{'.onnx' if form == 'onnx' else '.xml'}"
    EXPORTERS[form](detector, path, metadata, files)
    return path


def peak_resident(command: Sequence[str]) -> float:
    """The most memory, in MB, that a process has had; it prints that itself."""
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1])


def main() -> None:
    """Runs the eager detector of a config, height, width and number of proposals, and prints the peak memory in MB."""
    config, height, width, proposals = sys.argv[1], *map(int, sys.argv[2:])
    workload = Workload(config, 1, height, width, 1, proposals, "cpu", None)
    cfg = workload.load_config(_WITH_NMS)
    detector = workload.make_detector(cfg).eval()
    inputs = workload.make_inputs(cfg.MODEL.SparseRCNN.NUM_CLASSES)
    with torch.no_grad():
        for _ in range(_RUNS):
            detector(inputs)
    print(peak_memory())


if __name__ == "__main__":
    main()
