"""Reading configs: what is wrong with one is said with the file, the key and the remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dynamic_sparse_rcnn import model_zoo
from dynamic_sparse_rcnn.config import read_config

SMALL = model_zoo.get_config_file("small/sparse_rcnn_R_18_FPN_50pro_256px.yaml")
TRAIN_NET = str(Path(__file__).parents[1] / "tools/train_net.py")


def test_options_change_what_the_file_says():
    cfg = read_config(SMALL, ["MODEL.SparseRCNN.NUM_PROPOSALS", "7", "DATASETS.TEST", "('a', 'b')"])
    assert (cfg.MODEL.SparseRCNN.NUM_PROPOSALS, cfg.DATASETS.TEST) == (7, ("a", "b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["MODEL.SparseRCNN.NUM_PROPOSAL", "7"],
            r"NUM_PROPOSAL of the command line .*NUM_PROPOSALS meant\?",
        ),
        (["qqqq", "7"], r"The key qqqq of the command line is not one of detectron2's or of this project's$"),
        (["SOLVER.MAX_ITER"], "the last key has no value"),
        (["SOLVER.MAX_ITER", "3", "--eval-only"], "--eval-only stands behind keys and values: put it, and"),
        (["SOLVER.MAX_ITER", "3", "--num-gpus", "2"], "--num-gpus stands behind"),
        (["DATASETS.TEST", "a"], r"Data sets are a list.*\('name',\)"),
    ],
)
def test_options_that_cannot_be_read_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        read_config(SMALL, options)


def test_an_unknown_key_of_a_file_is_explained(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("VERSION: 2\nMODEL:\n  SparseRCNN:\n    INITIAL_BOXES: grid\n")
    with pytest.raises(ValueError, match=rf"SparseRCNN\.INITIAL_BOXES of {file} .*SparseRCNN\.INIT_BOXES meant"):
        read_config(str(file))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"There is no config file nowhere\.yaml: configs/ has"):
        read_config("nowhere.yaml")


@pytest.mark.slow
def test_the_command_line_says_what_is_wrong_in_one_line():
    command = [sys.executable, TRAIN_NET, "--num-gpus", "2", "--config-file", SMALL, "SOLVER.MAX_ITERS", "3"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: The key SOLVER.MAX_ITERS of the command line")
    assert "Traceback" not in ran.stderr
