"""What a model gets from a checkpoint, and how that is told."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from dynamic_sparse_rcnn.checkpoints import classes
from dynamic_sparse_rcnn.checkpoints.classes import DetectorClasses
from dynamic_sparse_rcnn.checkpoints.loading import Checkpointer, load_for_evaluation


@pytest.fixture
def weights(tiny_cfg: CfgNode, tmp_path: Path) -> str:
    Checkpointer(build_model(tiny_cfg), str(tmp_path)).save("trained")
    return str(tmp_path / "trained.pth")


def loaded(cfg: CfgNode, weights: str) -> torch.nn.Module:
    torch.manual_seed(1)  # not what the checkpoint started from
    model = build_model(cfg)
    Checkpointer(model, cfg.OUTPUT_DIR).load(weights)
    return model


def told(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = (r.getMessage() for r in caplog.records if "Checkpoint: " in r.getMessage())
    assert "\n" not in line
    return line


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("dynamic_sparse_rcnn"), "propagate", True)
    caplog.set_level(logging.INFO, logger="dynamic_sparse_rcnn")


def test_another_number_of_classes_keeps_everything_but_the_class_layers(tiny_cfg, weights, caplog) -> None:
    saved = torch.load(weights)["model"]
    tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = 7
    model = loaded(tiny_cfg, weights)
    torch.manual_seed(1)
    fresh = build_model(tiny_cfg).state_dict()
    classes = 0
    for name, value in model.state_dict().items():
        is_class_layer = ".class_logits." in name
        classes += is_class_layer
        assert torch.equal(value, fresh[name] if is_class_layer else saved[name]), name
    assert classes == 4
    total = len(saved)
    assert told(caplog) == (
        f"Checkpoint: kept {total - 4} of the model's {total} tensors; newly initialized, since their shapes differ: "
        "head.head_series.*.class_logits (4) (3 classes in the checkpoint, 7 in the model)"
    )


def test_the_same_model_is_told_to_be_kept_whole(tiny_cfg, weights, caplog) -> None:
    total = len(loaded(tiny_cfg, weights).state_dict())
    assert told(caplog) == f"Checkpoint: kept {total} of the model's {total} tensors"


def test_another_number_of_proposals_is_counted_once(tiny_cfg, weights, caplog) -> None:
    tiny_cfg.MODEL.SparseRCNN.NUM_PROPOSALS = 9
    total = len(loaded(tiny_cfg, weights).state_dict())
    line = told(caplog)
    assert f"kept {total - 2} of" in line
    assert "init_proposal_boxes (1)" in line and "init_proposal_features (1)" in line
    assert "lacks them" not in line


def test_backbone_weights_leave_the_rest_to_start_anew(tiny_cfg, weights, tmp_path, caplog) -> None:
    state = torch.load(weights)["model"]
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.bottom_up.")}
    torch.save({"model": backbone | {"fc.weight": torch.zeros(1)}}, tmp_path / "backbone.pth")
    loaded(tiny_cfg, str(tmp_path / "backbone.pth"))
    line = told(caplog)
    assert f"kept {len(backbone)} of" in line
    assert "newly initialized, since the checkpoint lacks them: head.head_series" in line
    assert "not read, since the model lacks them: fc (1)" in line


def test_an_evaluation_takes_the_whole_model_or_none(tiny_cfg, weights, tmp_path) -> None:
    load_for_evaluation(build_model(tiny_cfg), weights)
    tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = 5
    with pytest.raises(ValueError, match=r"class_logits.*3 classes in the checkpoint, 5 in the model.*config\.yaml"):
        load_for_evaluation(build_model(tiny_cfg), weights)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*nothing.*MODEL\.WEIGHTS"):
        load_for_evaluation(build_model(tiny_cfg), weights, str(tmp_path / "nothing"), resume=True)


ORDERED = DetectorClasses.numbered_from_zero(["ant", "bee", "cat"])
SWAPPED = DetectorClasses.numbered_from_zero(["bee", "ant", "cat"])
BOTH_LISTS = r"\['ant', 'bee', 'cat'\].*\['bee', 'ant', 'cat'\].*another order"


@pytest.fixture
def named_weights(tiny_cfg: CfgNode, tmp_path: Path) -> str:
    Checkpointer(build_model(tiny_cfg), str(tmp_path), classes=ORDERED).save("trained", iteration=3)
    return str(tmp_path / "trained.pth")


def test_an_evaluation_on_other_classes_is_refused(tiny_cfg, named_weights) -> None:
    model = build_model(tiny_cfg)
    load_for_evaluation(model, named_weights, classes=ORDERED)
    load_for_evaluation(model, named_weights)
    with pytest.raises(ValueError, match=BOTH_LISTS):
        load_for_evaluation(model, named_weights, classes=SWAPPED)


def test_a_checkpoint_without_names_is_not_compared(tiny_cfg, weights) -> None:
    load_for_evaluation(build_model(tiny_cfg), weights, classes=SWAPPED)


def test_a_run_is_not_resumed_with_other_classes(tiny_cfg, named_weights, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"cannot be resumed.*{BOTH_LISTS}.*leave out --resume"):
        Checkpointer(build_model(tiny_cfg), str(tmp_path), classes=SWAPPED).resume_or_load("", resume=True)


def test_a_training_that_starts_from_other_classes_warns(tiny_cfg, named_weights, tmp_path, caplog) -> None:
    checkpointer = Checkpointer(build_model(tiny_cfg), str(tmp_path / "new"), classes=SWAPPED)
    checkpointer.resume_or_load(named_weights, resume=False)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert re.search(BOTH_LISTS, warning)


def test_the_number_of_classes_is_warned_of_once(tiny_cfg, named_weights, tmp_path, caplog) -> None:
    tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = 2
    classes = DetectorClasses.numbered_from_zero(["ant", "bee"])
    Checkpointer(build_model(tiny_cfg), str(tmp_path / "new"), classes=classes).resume_or_load(
        named_weights, resume=False
    )
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "3 classes in the checkpoint, 2 in the model" in warning


@pytest.mark.parametrize("strict", [False, True])
def test_a_checkpoint_that_does_not_exist_is_named(tiny_cfg, tmp_path, strict) -> None:
    load = load_for_evaluation if strict else lambda model, path: Checkpointer(model).load(path)
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint file {path}"):
            load(build_model(tiny_cfg), str(path))


def test_a_checkpoint_that_cannot_be_downloaded_is_named(tiny_cfg, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    url = "http://127.0.0.1:9/model.pth"  # nothing listens there
    with pytest.raises(OSError, match=f"checkpoint {url} cannot be downloaded: .*refused.*Correct its URL"):
        Checkpointer(build_model(tiny_cfg)).load(url)


def test_data_out_of_reach_have_no_class_names(monkeypatch):
    def out_of_reach(name: str) -> None:
        raise PermissionError(name)

    monkeypatch.setattr(classes, "register_dataset", out_of_reach)
    assert DetectorClasses.from_datasets(["coco:https://example.com/train.json"]) is None
