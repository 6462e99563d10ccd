#!/usr/bin/env python3
"""Runs an exported detector a few times, with its runtime and NumPy alone, and prints the process's peak memory in MB.

python benchmarks/run_exported.py FILE PRECISION
"""

import json
import sys
from pathlib import Path

import numpy as np

_RUNS = 3


def main() -> None:
    """The precision is OpenVINO's."""
    path, precision = sys.argv[1:]
    run_onnx(path) if path.endswith(".onnx") else run_openvino(path, precision)
    print(peak_memory())


def peak_memory() -> float:
    """MB of this process, on Linux; ``ru_maxrss`` would be that of the process which started it, if that is larger."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1e3


def make_feed(height: int, width: int) -> dict[str, np.ndarray]:
    """Noise."""
    sizes = np.array([[height, width]])
    image = np.random.default_rng(0).integers(0, 256, (1, 3, height, width), dtype=np.uint8)
    return {"images": image, "image_sizes": sizes, "original_sizes": sizes}


def run_onnx(path: str) -> None:
    """With ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = make_feed(*json.loads(session.get_modelmeta().custom_metadata_map["size"]))
    for _ in range(_RUNS):
        session.run(None, feed)


def run_openvino(path: str, precision: str) -> None:
    """With OpenVINO."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    height, width = json.loads(model.get_rt_info(["sparse_rcnn", "size"]).value)
    model.reshape({"images": [1, 3, height, width], "image_sizes": [1, 2], "original_sizes": [1, 2]})
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    for _ in range(_RUNS):
        compiled(make_feed(height, width))


if __name__ == "__main__":
    main()
