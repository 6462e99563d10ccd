"""``dsrcnn``: its help, how it fails, and what the sub-commands pass on."""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import nullcontext

import pytest

from dynamic_sparse_rcnn.cli import COMMANDS, main, predict, train
from dynamic_sparse_rcnn.cli.options import run_options
from dynamic_sparse_rcnn.cli.running import summarize
from dynamic_sparse_rcnn.config_reading import read_config
from dynamic_sparse_rcnn.errors import describe, one_line_errors

LAZY = "lazy/sparse_rcnn_R_50_FPN_300pro_3x.py"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_the_help_of_every_command_fits_a_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([command, "--help"] if command else ["--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    "arguments",
    [
        *("train --output x", "eval x --data x", "predict x", "app", "report x", "inspect x", "analyze x"),
        *("visualize stages x --data x", "export x --output x", "convert x x", "convert-data x coco x"),
    ],
)
def test_every_command_that_reads_data_or_configs_imports_a_module_of_the_user_first(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main([*arguments.split(), "--import", "no_such_module"])
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: No module named 'no_such_module'")


def test_help_loads_neither_pytorch_nor_detectron2():
    code = (
        "import sys\nfrom dynamic_sparse_rcnn.cli import COMMANDS, main\n"
        "for arguments in [['--help'], *([name, '--help'] for name in COMMANDS)]:\n"
        "    try:\n        main(arguments)\n    except SystemExit:\n        pass\n"
        "assert not {'torch', 'detectron2', 'numpy', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_command_that_does_not_exist_is_an_error_of_usage(capsys):
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert end.value.code == 2 and "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--output", "out"], "--data is needed"),
        (["train", "--output", "out", "--data", "coco:no.json:img"], "no.json does not exist"),
        (["train", "--output", "out", "--data", "coco:no.json:img", "SOLVER.MAX_ITERS", "3"], "SOLVER.MAX_ITER meant?"),
        (["train", "--output", "out", "--data", "x", "--config-file", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["train", "--output", "out", "--data", "x", "--import", "no_such_module"], "No module named 'no_such_module'"),
        (
            ["train", "--output", "out", "--data", "x", "--weights", "no.pth"],
            "no.pth is neither the folder of a run",
        ),
        (["train", "--output", "o", "--data", "a", "--data", "b", "--config-file", LAZY], "A lazy config takes one"),
        (["eval", "nowhere", "--data", "x"], "nowhere is neither the folder of a run"),
        (["predict", "nowhere.jpg"], "no file or folder nowhere.jpg"),
        (["visualize", "proposals", "nowhere", "--data", "x"], "nowhere is neither the folder of a run"),
        (["report", "nowhere"], "nowhere has neither metrics.json nor inference"),
        (["convert", "nowhere.pth", "x.pth", "--config-file", "y"], "nowhere.pth is neither the folder of a run"),
        (["convert-data", "coco:no.json", "voc", "x"], "no.json does not exist"),
        (["analyze", "nowhere.yaml"], "no config file nowhere.yaml"),
    ],
)
def test_a_failing_command_ends_with_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert message in line and error.rstrip().endswith(line)


def test_the_stack_trace_is_shown_on_request(capsys):
    with pytest.raises(SystemExit):
        main(["analyze", "nowhere.yaml", "--traceback"])
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and error.splitlines()[-1].startswith("error: There is no config file")


def test_a_tilde_is_the_home_folder_in_every_command_that_writes(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    main(["convert-data", shapes, "yolo", "~/data"])
    main(["inspect", "yolo:~/data/data.yaml:train", "--output", "~/samples.png"])
    assert {file.name for file in (tmp_path / "home").iterdir()} == {"data", "samples.png"}
    for command in (
        ["report", "~/run"],
        ["export", "~/run", "--output", "~/model.none"],
        ["convert", "~/run", "~/a.pth"],
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert "~/" not in capsys.readouterr().err.replace("~/run is neither", "")
    assert [file.name for file in tmp_path.iterdir()] == ["home"]


def test_a_fault_of_the_program_shows_its_stack_trace_unasked(capsys):
    with pytest.raises(SystemExit), one_line_errors(False):
        [].pop()
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("error: IndexError: pop from empty list")


def test_errors_without_a_message_and_of_other_libraries_are_described():
    assert describe(KeyError("a\nb")) == "a b (--traceback shows where)"
    assert describe(ValueError()).startswith("ValueError")
    assert describe(FileNotFoundError(2, "No such file or directory", "x.png")).endswith("directory: 'x.png'")


@pytest.mark.parametrize(
    ("results", "lines"),
    [
        ({"bbox": {"AP": 41.26, "AP50": 60.0, "AP75": float("nan"), "APs": 1.0}}, ["bbox AP 41.3 AP50 60.0 AP75 nan"]),
        (
            {"coco:a.json:b": {"bbox": {"AP": 1.0, "AP50": 2.0, "AP75": 3.0}}, "x": {"proposals": {"recall50": 1.0}}},
            ["coco:a.json:b: bbox AP 1.0 AP50 2.0 AP75 3.0"],
        ),
        ({}, []),
    ],
)
def test_results_are_told_in_a_line_for_each_data_set(results, lines):
    assert summarize(results) == lines


NAMES = ["coco:a b.json:im'ages", r"coco:C:\data\x.json:C:\images", r"odd\'one:\\", "voc:folder:split"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", [train.DEFAULT_CONFIG, LAZY])
def test_names_of_any_kind_reach_the_config_as_they_are(name, config):
    options = run_options(config, "my out", train=[name], test=[name], weights="w.pth")
    cfg = read_config(config, options)
    if config == LAZY:
        assert (cfg.dataloader.train.dataset.name, cfg.dataloader.test.dataset.name) == (name, name)
        assert (cfg.train.output_dir, cfg.train.init_checkpoint) == ("my out", "w.pth")
    else:
        assert ((name,), (name,)) == (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
        assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == ("my out", "w.pth")
        assert tuple(NAMES) == read_config(config, run_options(config, "out", train=NAMES, test=[])).DATASETS.TRAIN


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "cuda:1"),
        (["--weights", "x.onnx"], "cuda:1"),
        (["--weights", "x.xml"], None),
        (["--config-file", "x.pt2"], None),
        (["--weights", "x.xml", "--device", "GPU.0"], "GPU.0"),
    ],
)
def test_exported_files_get_the_gpu_of_a_process_only_if_they_run_on_it(monkeypatch, options, expected):
    given = []

    class Stop(Exception):
        pass

    def stop(*_, device, **__):
        given.append(device)
        raise Stop

    monkeypatch.setattr("dynamic_sparse_rcnn.prediction.predictor.Predictor", stop)
    monkeypatch.setattr("dynamic_sparse_rcnn.engine.launch.processes_of_torchrun", lambda: nullcontext((0, "cuda:1")))
    parser = argparse.ArgumentParser()
    predict.add_parser(parser.add_subparsers())
    with pytest.raises(Stop):
        predict.run(parser.parse_args(["predict", __file__, *options]))
    assert given == [expected]
