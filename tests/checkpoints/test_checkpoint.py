"""State dicts speak the names of the public Sparse R-CNN."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from dynamic_sparse_rcnn import add_dynamic_sparse_rcnn_config

ROOT = Path(__file__).parents[2]
PUBLIC_NAMES = Path(__file__).parents[1] / "assets" / "public_sparse_rcnn_r50_300_state_dict.txt"


@pytest.fixture(scope="module")
def public_state_dict() -> dict[str, torch.Tensor]:
    """Random values under the names and shapes of the public R50, 300 proposals checkpoint."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for line in PUBLIC_NAMES.read_text().splitlines():
        name, shape, _ = line.split("\t")
        sizes = [int(size) for size in shape.strip("()").split(",") if size.strip()]
        state[name] = 0.01 * torch.rand(sizes, generator=generator)
    return state


def build_published_model() -> torch.nn.Module:
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


@pytest.mark.slow
def test_a_public_checkpoint_loads_strictly_and_saves_with_the_same_names(public_state_dict, tmp_path):
    assert len(public_state_dict) == 523
    model = build_published_model()
    model.load_state_dict(public_state_dict, strict=True)
    saved = model.state_dict()
    assert saved.keys() == public_state_dict.keys()
    for name, value in public_state_dict.items():
        assert torch.equal(saved[name], value), name
    boxes = model.proposal_generator.init_proposal_boxes.weight
    assert torch.equal(boxes, public_state_dict["init_proposal_boxes.weight"])


@pytest.mark.slow
def test_detectron2s_checkpointer_loads_a_public_file_of_a_distributed_model_completely(public_state_dict, tmp_path):
    path = tmp_path / "public.pth"
    torch.save({"model": {"module." + name: value for name, value in public_state_dict.items()}}, path)
    model = build_published_model()
    rest = DetectionCheckpointer(model).load(str(path))
    assert "iteration" not in rest
    for name, value in model.state_dict().items():
        assert torch.equal(value, public_state_dict[name]), name


def test_checkpoints_round_trip_through_detectron2(tiny_cfg, tmp_path):
    model, other = build_model(tiny_cfg), build_model(tiny_cfg)
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    saved = torch.load(tmp_path / "model.pth")["model"]
    assert "init_proposal_boxes.weight" in saved
    assert not [name for name in saved if name.startswith("proposal_generator.")]
    DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_checkpoint_with_other_numbers_of_proposals_and_classes_loads_all_the_rest(tiny_cfg, tmp_path):
    model = build_model(tiny_cfg)
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    tiny_cfg.MODEL.SparseRCNN.NUM_PROPOSALS, tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = 5, 7
    other = build_model(tiny_cfg)
    DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
    loaded = other.state_dict()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, loaded[name])}
    changed = model.state_dict().keys() - same
    assert changed == {
        "init_proposal_boxes.weight",
        "init_proposal_features.weight",
        *(f"head.head_series.{stage}.class_logits.{kind}" for stage in range(2) for kind in ("weight", "bias")),
    }


def test_loading_does_not_change_the_callers_state_dict(tiny_cfg):
    model = build_model(tiny_cfg)
    state = dict(model.state_dict())
    names = list(state)
    model.load_state_dict(state)
    assert list(state) == names


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_give_the_same_detections_and_names(tiny_cfg, make_inputs, clone):
    model = build_model(tiny_cfg).eval()
    twin = clone(model)
    assert twin.state_dict().keys() == model.state_dict().keys()
    twin.load_state_dict(model.state_dict())
    inputs = make_inputs([1, 2])
    with torch.no_grad():
        for one, other in zip(model(inputs), twin(inputs), strict=True):
            assert torch.equal(one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)
            assert torch.equal(one["instances"].scores, other["instances"].scores)


def test_missing_and_unexpected_names_are_reported(tiny_cfg):
    model = build_model(tiny_cfg)
    state = model.state_dict()
    state["init_proposal_stranger"] = state.pop("init_proposal_boxes.weight")
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    assert "init_proposal_boxes.weight" in str(error.value)
    assert "init_proposal_stranger" in str(error.value)
