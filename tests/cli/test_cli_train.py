"""``dsrcnn train`` without a config: what is chosen is kept, and is what a resumed run has."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from small_runs import CONFIG
from small_runs import TINY as TINY_RUN

from dynamic_sparse_rcnn import Predictor
from dynamic_sparse_rcnn.cli import main

# Makes the default detector tiny; the length and the batch stay open.
TINY = [
    *("MODEL.TIMM.NAME", "test_efficientnet", "MODEL.TIMM.CHECKPOINT", "", "MODEL.DEVICE", "cpu"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SparseRCNN.HIDDEN_DIM", "32", "MODEL.SparseRCNN.DIM_DYNAMIC", "8"),
    *("MODEL.SparseRCNN.DPG.HIDDEN_DIM", "16", "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
]

LAZY = "lazy/sparse_rcnn_R_50_FPN_300pro_3x.py"
TINY_LAZY = [
    *("train.device=cpu", "train.init_checkpoint=''", "train.max_iter=2", "dataloader.train.total_batch_size=2"),
    *("train.reference_batch_size=0", "train.eval_period=1", "model.proposal_generator.num_proposals=5"),
    *("model.head.stages.num_stages=2", "model.head.stages.num_classes=5", "model.head.stages.feedforward_channels=64"),
    *("dataloader.train.num_workers=0", "dataloader.train.mapper.augmentations.0.prob=0"),
    "dataloader.train.mapper.augmentations.1.short_edge_length=[64]",
    *("dataloader.test.num_workers=0", "dataloader.test.mapper.augmentations.0.short_edge_length=64"),
]


def config_of(folder: Path) -> dict:
    content: dict = yaml.safe_load((folder / "config.yaml").read_text())
    return content


def test_epochs_are_all_that_a_training_needs_and_a_resumed_one_keeps_what_was_chosen(shapes, tmp_path, capsys, caplog):
    main(
        [
            "train",
            "--data",
            shapes,
            "--output",
            str(tmp_path),
            "--epochs",
            "8",
            *TINY,
            "SOLVER.IMS_PER_BATCH",
            "5",
            "SOLVER.PATIENCE",
            "9",
        ]
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith("bbox AP ")
    config = config_of(tmp_path)
    assert config["MODEL"]["META_ARCHITECTURE"] == "DynamicSparseRCNN"
    assert config["MODEL"]["SparseRCNN"]["NUM_PROPOSALS"] == 30
    # Five of the six images, in batches of five; the command line has the last word.
    assert (config["SOLVER"]["MAX_ITER"], config["SOLVER"]["STEPS"], config["INPUT"]["MIN_SIZE_TEST"]) == (8, [6], 64)
    assert config["INPUT"]["MIN_SIZE_TRAIN"] == [64]
    assert (config["DATASETS"]["TRAIN"], config["DATASETS"]["TEST"]) == ([f"{shapes}:0-80%"], [f"{shapes}:80-100%"])
    assert "Chosen: SOLVER.MAX_ITER 8: 8 epochs of 5 images" in (tmp_path / "log.txt").read_text()
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    # As somebody does whose machine may be taken away: the same command each time.
    logging.getLogger("dynamic_sparse_rcnn").addHandler(caplog.handler)  # runs stop the propagation
    main(["train", "--resume", "--data", shapes, "--output", str(tmp_path), "--epochs", "8"])
    assert config_of(tmp_path) == config
    assert "Resuming the run" in (tmp_path / "log.txt").read_text()
    assert f"settings in {tmp_path / 'config.yaml'}; not read: --data, --epochs" in caplog.text


@pytest.mark.parametrize(
    ("config", "options"), [(CONFIG, [*TINY_RUN, "TEST.EVAL_PERIOD", "2"]), (LAZY, TINY_LAZY)], ids=["yaml", "lazy"]
)
def test_a_run_without_validation_data_is_not_evaluated_until_it_is_asked_for(
    config, options, shapes, tmp_path, capsys
):
    main(["train", "--data", shapes, "--output", str(tmp_path), "--config-file", config, *options])
    assert "bbox AP" not in capsys.readouterr().out
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert (tmp_path / "report.html").is_file() and not (tmp_path / "inference").exists()
    assert (tmp_path / "log.txt").read_text().count("There is no test set: nothing is evaluated") == 1
    assert Predictor(weights=str(tmp_path), device="cpu").classes.names[0] == "circle"
    main(["eval", str(tmp_path), "--data", shapes])
    assert capsys.readouterr().out.splitlines()[-1].startswith("bbox AP ")


def test_minutes_set_the_length_of_a_config_too(shapes, tmp_path, monkeypatch):
    from dynamic_sparse_rcnn.engine import run_length

    monkeypatch.setattr(run_length, "measure", lambda cfg, processes: run_length.Timing(5.0, 0.0))
    arguments = ["train", "--data", shapes, "--output", str(tmp_path), "--minutes", "0.2", "--config-file", CONFIG]
    main([*arguments, *TINY[6:], "SOLVER.IMS_PER_BATCH", "2"])
    config = config_of(tmp_path)
    assert config["SOLVER"]["MAX_ITER"] == 2
    assert config["MODEL"]["META_ARCHITECTURE"] == "SparseRCNN"
    assert "Chosen: SOLVER.MAX_ITER 2: 0.2 minutes; an iteration takes 5.00 s" in (tmp_path / "log.txt").read_text()


def test_ten_minutes_are_the_default_without_a_config_alone(shapes, tmp_path, monkeypatch):
    from dynamic_sparse_rcnn.engine import launch, run_length

    lengths = []
    monkeypatch.setattr(launch, "launch", lambda *args: None)
    monkeypatch.setattr(run_length, "choose_training", lambda *args, **length: lengths.append(length) or [])
    data = ["train", "--data", shapes, "--output", str(tmp_path)]
    cpu = ["--num-gpus", "0", "--epochs", "2"]
    for options in ([], ["--minutes", "3"], ["SOLVER.MAX_ITER", "7"], cpu, ["--config-file", CONFIG]):
        main([*data, *options])
    assert [length["minutes"] for length in lengths] == [10, 3, None, None]
    assert [length.get("iterations") for length in lengths] == [None, None, 7, None]
    assert [length["processes"] for length in lengths] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "invalid positive value: '0'"),
        (["--minutes", "1", "--epochs", "1"], "not allowed with argument"),
        (["--minutes", "1", "SOLVER.MAX_ITER", "9"], "--minutes and --epochs set SOLVER.MAX_ITER: leave out one"),
        (["--epochs", "1", "SOLVER.MAX_ITER", "9"], "--minutes and --epochs set SOLVER.MAX_ITER: leave out one"),
        (["--minutes", "1", "--config-file", LAZY], "are for yaml configs"),
    ],
)
def test_what_contradicts_itself_is_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["train", "--data", "coco:none.json", "--output", str(tmp_path), *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_processes_of_torchrun_do_not_choose_each_for_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SystemExit):
        main(["train", "--data", "coco:none.json", "--output", str(tmp_path)])
    assert "under torchrun each process would choose its own settings" in capsys.readouterr().err
