"""Reading lazy configs: what is wrong with one, or with an option, is one line; values keep their kind."""

from __future__ import annotations

import os

import pytest
from detectron2.config import LazyConfig

from dynamic_sparse_rcnn import model_zoo
from dynamic_sparse_rcnn.config_reading import ConfigError, read_config
from dynamic_sparse_rcnn.engine.from_lazy import save_config

LAZY = model_zoo.get_config_file("lazy/sparse_rcnn_R_50_FPN_300pro_3x.py")


def read(*options: str):
    return read_config(LAZY, options)


def test_options_change_what_the_file_says():
    cfg = read(
        "train.max_iter=5",
        "dataloader.train.mapper.augmentations.1.short_edge_length=[64]",
        "model.head.stages.dropout=0.5",
        "optimizer.weight_decay=0",
        "train.output_dir=2024",
        "train.amp.enabled=true",
        "train.checkpointer.max_to_keep=3",
        "model.backbone.top_block=null",
        "+train.mine={a: 1}",
    )
    assert (cfg.train.max_iter, cfg.train.output_dir, cfg.train.amp.enabled) == (5, "2024", True)
    assert cfg.dataloader.train.mapper.augmentations[1].short_edge_length == [64]
    assert (cfg.model.head.stages.dropout, cfg.optimizer.weight_decay) == (0.5, 0)
    assert (cfg.train.checkpointer.max_to_keep, cfg.model.backbone.top_block, cfg.train.mine.a) == (3, None, 1)


def test_a_whole_number_may_be_written_as_others_write_it():
    assert read("train.max_iter=1e3").train.max_iter == 1000
    assert isinstance(read("train.max_iter=1e3").train.max_iter, int)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.max_itter=5", r"^the config has no key train\.max_itter: is train\.max_iter meant\?"),
        ("train.EMA.enabled=true", r"is train\.ema\.enabled meant\?"),
        ("foo=5", r"^the config has no key foo: correct it"),
        ("dataloader.train.mapper.augmentations.7.prob=1", r"has no key dataloader\.train\.mapper\.augmentations\.7"),
        ("train.max_iter=abc", r"^train\.max_iter is 270000, so train\.max_iter='abc' has the wrong type"),
        ("train.max_iter=true", r"=True has the wrong type"),
        ("train.amp.enabled=1", r"^train\.amp\.enabled is False, so train\.amp\.enabled=1 has the wrong type"),
        ("train.amp=true", r"^train\.amp is \{.*\}, so train\.amp=True has the wrong type"),
        ("optimizer.lr=fast", r"optimizer\.lr is 2\.5e-05, so optimizer\.lr='fast'"),
        ("train.max_iter", r"^'train\.max_iter' is not of the form key=value"),
        ("train.max_iter=[1", r"is not of the form key=value"),
        ("~train.max_iter", r"keys cannot be deleted"),
        ("train.output_dir=${nothing.there}", r"nothing\.there"),
        ("MODEL.WEIGHTS", r"is not of the form key=value"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_read_are_explained_in_one_line(option, message):
    with pytest.raises(ConfigError, match=message) as error:
        read("train.seed=1", option)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", r"ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("train = dict(", r"SyntaxError: "),
        ("from .nowhere import train", r"(ImportError|AssertionError|FileNotFoundError): .*nowhere"),
        ("train = 1 / 0", r"ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_cannot_be_read_is_explained_in_one_line(tmp_path, text, message):
    file = tmp_path / "lazy.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_config(str(file))
    assert str(error.value).startswith(f"{file} cannot be read: ") and "\n" not in str(error.value)


def test_the_home_directory_is_meant_by_a_tilde_in_any_value_of_either_kind(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    lazy = read("train.output_dir='~/out'", "train.init_checkpoint='~/w.pth'", "+model.files=['~', 'a~b', '~/c']")
    assert (lazy.train.output_dir, lazy.train.init_checkpoint) == (f"{tmp_path}/out", f"{tmp_path}/w.pth")
    assert lazy.model.files == [str(tmp_path), "a~b", f"{tmp_path}/c"]
    values = {"OUTPUT_DIR": "~/out", "MODEL.WEIGHTS": "~/w.pth", "INPUT.ALBUMENTATIONS": "~/a.yaml"}
    options = [part for pair in values.items() for part in pair]
    cfg = read_config(model_zoo.get_config_file("small/sparse_rcnn_R_18_FPN_50pro_256px.yaml"), options)
    assert os.path.join(tmp_path, "out") == cfg.OUTPUT_DIR
    assert (f"{tmp_path}/w.pth", f"{tmp_path}/a.yaml") == (cfg.MODEL.WEIGHTS, cfg.INPUT.ALBUMENTATIONS)
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["sparse_rcnn_R_50_FPN_300pro_3x", "dynamic_sparse_rcnn_R_50_FPN_300pro_3x"])
def test_what_a_run_writes_is_read_again(tmp_path, name):
    cfg = read_config(model_zoo.get_config_file(f"lazy/{name}.py"), [f"train.output_dir={tmp_path}"])
    save_config(cfg)
    again = read_config(str(tmp_path / "config.yaml"))
    LazyConfig.save(again, str(tmp_path / "again.yaml"))
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "config.yaml").read_text()
    assert again.train.output_dir == str(tmp_path) and again.model._target_.endswith("RCNN")
