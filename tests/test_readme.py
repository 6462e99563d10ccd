"""What the README says to type works."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import cv2
import pytest

from dynamic_sparse_rcnn import DynamicSparseRCNN, Predictor, cli
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What makes the README's training one of seconds.
SMALL = ["--config-file", "shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml"]
SHORT = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu", "MODEL.SparseRCNN.NUM_HEADS", "1"]


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [block for of, block in found if of == language]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with the README's image."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run(folder, capsys):
    predicting, building = blocks("python")
    names: dict = {}
    exec(predicting, names)
    assert "star" in capsys.readouterr().out
    assert cv2.imread("detections.png").shape == (384, 384, 3)
    exec(building, names)
    assert isinstance(names["model"], DynamicSparseRCNN)


@pytest.mark.slow
def test_commands_run_one_after_the_other(folder, capsys):
    for part in ("train", "val"):
        generate_shapes(folder / "data", part, ShapesConfig(num_images=4))
        shutil.move(folder / f"data/{part}.json", folder)
        shutil.copytree(folder / "data" / part, folder / "images", dirs_exist_ok=True)
    commands = [line for block in blocks("") for line in block.splitlines() if line.startswith("dsrcnn ")]
    for command in commands:
        arguments = shlex.split(command)[1:]
        is_training = arguments[0] == "train"
        cli.main([*arguments, *(SMALL if is_training else []), *(SHORT if is_training else [])])
        if arguments[0] in ("train", "eval"):
            assert re.fullmatch(r"bbox AP \S+ AP50 \S+ AP75 \S+", capsys.readouterr().out.splitlines()[-1])
    assert {command.split()[1] for command in commands} >= {"predict", "train", "eval"}
    assert Path("output/predictions/detections.json").is_file() and Path("output/mine/model_final.pth").is_file()


def test_the_detector_that_comes_with_the_package_finds_the_shapes():
    prediction = Predictor(device="cpu")(ROOT / "docs/shapes.png")
    # The first held-out image of the generated set.
    assert sorted(prediction.labels) == ["circle", "star", "triangle", "triangle"]


def test_it_is_read_in_two_minutes():
    assert len(README.splitlines()) <= 120
    words = re.sub(r"^```.*?^```|\]\([^)]*\)", "", README, flags=re.MULTILINE | re.DOTALL).split()
    assert len(words) <= 700
