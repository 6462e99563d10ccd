"""The example of a detector in Node finds what Python finds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dynamic_sparse_rcnn import Predictor

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/node"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the example, installed as it says."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node")
    copy = shutil.copytree(EXAMPLE, tmp_path / "node", ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(install, cwd=copy, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm cannot install the packages: {installed.stderr[-200:]}")
    return copy


@pytest.mark.slow
def test_node_finds_what_python_finds(folder, shapes_onnx):
    shutil.copy(shapes_onnx, folder / "detector.onnx")
    # Turned by its EXIF data, as photographs of phones are.
    with Image.open(ROOT / "docs/shapes.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.crop((0, 0, 128, 100)).save(folder / "turned.png", exif=exif)
    (snippet,) = re.findall(r'python -c "(.*?)" > detector.json', (folder / "predict.mjs").read_text(), re.DOTALL)
    command = [sys.executable, "-c", snippet.replace("\n//", "\n")]
    described = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    (folder / "detector.json").write_text(described)
    command = ["node", "predict.mjs", "detector.onnx", "detector.json", "turned.png"]
    printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    lines = [re.fullmatch(r"turned.png: (\w+) (0\.\d+) at (.*)", line) for line in printed.splitlines()]
    expected = Predictor(str(folder / "detector.onnx"))(folder / "turned.png")
    assert len(expected.labels) > 1
    # Sorted by place: the two resize a little differently, and similar scores change places.
    found = sorted((json.loads(f"[{line[3]}]"), line[1]) for line in lines if line)
    wanted = sorted(zip(expected.instances.pred_boxes.tensor.tolist(), expected.labels, strict=True))
    assert [label for _, label in found] == [label for _, label in wanted]
    for (box, _), (wanted_box, _) in zip(found, wanted, strict=True):
        assert box == pytest.approx(wanted_box, abs=2)
