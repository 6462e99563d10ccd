"""Reading configs: what is wrong with one is said with the file, the key and the remedy."""

from __future__ import annotations

import pytest

from dynamic_sparse_rcnn import model_zoo
from dynamic_sparse_rcnn.config_reading import ConfigError, read_config

SMALL = model_zoo.get_config_file("small/sparse_rcnn_R_18_FPN_50pro_256px.yaml")


def test_options_change_what_the_file_says():
    cfg = read_config(SMALL, ["MODEL.SparseRCNN.NUM_PROPOSALS", "7", "DATASETS.TEST", "('a', 'b')"])
    assert (cfg.MODEL.SparseRCNN.NUM_PROPOSALS, cfg.DATASETS.TEST) == (7, ("a", "b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.SparseRCNN.NUM_PROPOSAL", "7"], r"the command line: .* is MODEL\.SparseRCNN\.NUM_PROPOSALS meant\?$"),
        (["model.sparsercnn.num_proposals", "7"], r"is MODEL\.SparseRCNN\.NUM_PROPOSALS meant\?$"),
        (["SOLVER.FOO", "7"], r"the command line: there is no key SOLVER\.FOO in detectron2 or in this project$"),
        (["SOLVER.MAX_ITER"], r"^the command line: SOLVER\.MAX_ITER has no value: KEY VALUE pairs are needed"),
        (["SOLVER.MAX_ITER", "3", "--eval-only"], r"--eval-only follows KEY VALUE pairs: put options before"),
        (["SOLVER.MAX_ITER", "3", "--num-gpus", "2"], "--num-gpus follows"),
        (["SOLVER.MAX_ITER", "many"], r"^the command line: Type mismatch .*SOLVER\.MAX_ITER$"),
        (["MODEL.SparseRCNN", "3"], r"^the command line: Type mismatch"),
        (["DATASETS.TEST", "a"], r"Data sets are a list.*\('name',\)"),
    ],
)
def test_options_that_cannot_be_read_are_explained_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_config(SMALL, options)
    assert "\n" not in str(error.value)


def test_a_value_may_begin_as_options_do():
    assert read_config(SMALL, ["OUTPUT_DIR", "--here"]).OUTPUT_DIR == "--here"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  SparseRCNN:\n    INITIAL_BOXES: grid\n", r"is MODEL\.SparseRCNN\.INIT_BOXES meant\?$"),
        ("MODEL:\n  SparseRCNN: [3\n", r"while parsing a flow sequence .*line 3"),
        ("MODEL:\n\tDEVICE: cpu\n", r"found character .* line 3"),
    ],
)
def test_a_file_that_cannot_be_read_is_explained_in_one_line(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(f"VERSION: 2\n{text}")
    with pytest.raises(ConfigError, match=message) as error:
        read_config(str(file))
    assert str(error.value).startswith(f"{file} (or its _BASE_): ") and "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(
        FileNotFoundError, match=r"There is no config file nowhere\.yaml; the model zoo has: .*small/sparse_rcnn_R_18"
    ):
        read_config("nowhere.yaml")


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_tags_that_run_code_are_refused_unless_the_file_is_trusted(tmp_path, kind):
    file, trace = tmp_path / "config.yaml", tmp_path / "trace"
    key = "model" if kind == "lazy" else "OUTPUT_DIR"
    file.write_text(f"VERSION: 2\n{key}: !!python/object/apply:os.mkdir ['{trace}']\n")
    with pytest.raises(ConfigError, match=r"python/object/apply:os\.mkdir") as error:
        read_config(str(file), trust=False)
    assert not trace.exists() and str(error.value).startswith(str(file)) and "\n" not in str(error.value)
    if kind == "lazy":
        with pytest.raises(ConfigError, match=r"python/object/apply:os\.mkdir"):
            read_config(str(file))
        assert not trace.exists()
    else:
        assert str(error.value).endswith("use --trust-checkpoint")
        read_config(str(file), trust=True)
        assert trace.exists()
