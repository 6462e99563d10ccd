"""The scripts of ``tools/`` that lead to ``dsrcnn`` keep the command lines that they had before it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import cv2
import pytest
from small_runs import CONFIG, TINY

from dynamic_sparse_rcnn.data.checks import load_checked_dataset
from dynamic_sparse_rcnn.data.formats import expand_folders

TOOLS = Path(__file__).parents[2] / "tools"
ANALYZED = "shapes/sparse_rcnn_R_18_FPN_20pro.yaml"


@pytest.fixture
def run(monkeypatch):
    """Runs a script with arguments in this process; gives its exit status."""

    def run_script(name: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            runpy.run_path(str(TOOLS / name), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run_script


def test_train_net_says_in_one_line_what_is_wrong_with_data(run, capsys):
    arguments = ["--config-file", CONFIG, "DATASETS.TRAIN", "('coco:nowhere.json:images',)", *TINY]
    assert run("train_net.py", *arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: Annotation file nowhere.json does not exist")
    assert run("train_net.py") == 1
    assert "--config-file is needed" in capsys.readouterr().err


def test_inspect_dataset(run, shapes, tmp_path, capsys):
    options = ["--config-file", CONFIG, "--images", "1", "--output", str(tmp_path / "x.png"), "--opts", "SEED", "1"]
    assert run("inspect_dataset.py", shapes, *options) == 0
    assert "1 samples" in capsys.readouterr().out
    assert run("inspect_dataset.py", "coco:nowhere.json:images", *options) == 1


def test_generated_shapes_are_a_folder_to_train_on(run, tmp_path):
    assert run("generate_shapes.py", str(tmp_path), "--train", "2", "--val", "1") == 0
    train, val = expand_folders([str(tmp_path)], "train"), expand_folders([str(tmp_path)], "val")
    assert [len(load_checked_dataset(*names, num_classes=5)) for names in (train, val)] == [2, 1]


def test_analyze_model(run, capsys):
    for config in (["--config-file", ANALYZED], [f"--config-file={ANALYZED}"]):
        assert run("analyze_model.py", *config, "--size", "64", "64", "--depth", "0") == 0
        assert "SparseRCNN" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["assignment", "proposals"])
def test_visualize(run, shapes, tmp_path, what, capsys):
    config = TOOLS.parent / "configs/shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml"
    data = ["DATASETS.TRAIN", f"('{shapes}',)", "DATASETS.TEST", f"('{shapes}',)", "MODEL.WEIGHTS", ""]
    options = ["--image", "000001", "--output", str(tmp_path / "x.png"), *data, "MODEL.DEVICE", "cpu"]
    assert run(f"visualize_{what}.py", "--config-file", str(config), *options) == 0
    assert cv2.imread(str(tmp_path / "x.png")) is not None
    assert run(f"visualize_{what}.py", "--config-file", "nowhere.yaml") == 1
    assert "error: There is no config file nowhere.yaml" in capsys.readouterr().err


def test_convert_checkpoint(run, capsys):
    assert run("convert_checkpoint.py", "--config-file", ANALYZED, "nowhere.pth", "x.pth") == 1
    assert "error: nowhere.pth is neither" in capsys.readouterr().err


def test_demo(run, tmp_path, capsys):
    picture = str(TOOLS.parent / "docs/shapes.png")
    assert run("demo.py", "--input", picture, "--output", str(tmp_path), "--device", "cpu") == 0
    assert "detections in 1 images" in capsys.readouterr().out
    assert run("demo.py", "--input", "nowhere.png") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo.py", "--input", "nowhere.png"),
        ("visualize_proposals.py", "--config-file", "nowhere.yaml"),
        ("train_net.py", "--config-file", "nowhere.yaml"),
    ],
)
def test_scripts_import_a_module_of_the_user_first(run, arguments, capsys):
    assert run(*arguments, "--import", "modules_nowhere") == 1
    assert "No module named 'modules_nowhere'" in capsys.readouterr().err
