"""A static Sparse R-CNN checkpoint as the start of dynamic proposals."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model


@pytest.fixture
def static_model(tiny_cfg) -> torch.nn.Module:
    model = build_model(tiny_cfg).eval()
    with torch.no_grad():
        model.proposal_generator.init_proposal_boxes.weight.uniform_(0.2, 0.6)
    return model


@pytest.fixture
def checkpoint(static_model, tmp_path) -> str:
    DetectionCheckpointer(static_model, str(tmp_path)).save("static")
    return str(tmp_path / "static.pth")


@pytest.fixture
def dynamic_cfg(tiny_dynamic_cfg) -> CfgNode:
    tiny_dynamic_cfg.MODEL.SparseRCNN.MATCHER = "HungarianMatcher"  # without NMS, as the static model
    return tiny_dynamic_cfg


def load(cfg: CfgNode, checkpoint: str) -> torch.nn.Module:
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(checkpoint)
    return model


def test_without_offset_the_first_detections_are_the_static_models(static_model, checkpoint, dynamic_cfg, make_inputs):
    dynamic_cfg.MODEL.SparseRCNN.DPG.EXPERT_INIT = 0.0
    model = load(dynamic_cfg, checkpoint)
    inputs = make_inputs([0, 0, 0])
    for expected, found in zip(static_model(inputs), model(inputs), strict=True):
        torch.testing.assert_close(found["instances"].scores, expected["instances"].scores, rtol=1e-4, atol=1e-5)
        boxes = found["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=1e-4, atol=1e-2)  # pixels


def test_all_experts_start_around_the_static_proposals(static_model, checkpoint, dynamic_cfg):
    generator = load(dynamic_cfg, checkpoint).proposal_generator
    static = static_model.proposal_generator
    boxes, features = static.init_proposal_boxes.weight, static.init_proposal_features.weight
    for values, start in ((generator.expert_boxes, boxes), (generator.expert_features, features)):
        assert torch.equal(values[0], start)
        torch.testing.assert_close(values.mean(0), start)
        assert all((values[e] - start).abs().mean() > 0.02 for e in (1, 2, 3))


def test_every_process_starts_alike(checkpoint, dynamic_cfg):
    states = []
    for seed in (1, 2):
        model = build_model(dynamic_cfg)
        torch.manual_seed(seed)
        DetectionCheckpointer(model).load(checkpoint)
        states.append(model.state_dict())
    for kind in ("boxes", "features"):
        name = f"proposal_generator.expert_proposal_{kind}.weight"
        assert torch.equal(states[0][name], states[1][name])


def test_one_line_says_so_and_only_the_router_is_reported_missing(checkpoint, dynamic_cfg, caplog):
    with caplog.at_level(logging.INFO):
        load(dynamic_cfg, checkpoint)
    assert caplog.text.count("All 4 experts start from the checkpoint's static proposals") == 1
    (missing,) = [record.message for record in caplog.records if "not found in the checkpoint" in record.message]
    assert "router" in missing and "expert_proposal" not in missing
    assert "not used by the model" not in caplog.text


def test_another_number_of_proposals_is_reported_and_not_used(checkpoint, dynamic_cfg, caplog):
    dynamic_cfg.MODEL.SparseRCNN.NUM_PROPOSALS = 5
    model = load(dynamic_cfg, checkpoint)
    assert model.proposal_generator.expert_boxes[0].tolist() == [[0.5, 0.5, 1, 1]] * 5
    assert "[(8, 4), (8, 32)] instead of [(5, 4), (5, 32)]" in caplog.text
    assert "MODEL.SparseRCNN.NUM_PROPOSALS" in caplog.text


def test_a_dynamic_checkpoint_is_taken_as_it_is(checkpoint, dynamic_cfg, tmp_path, caplog):
    model = load(dynamic_cfg, checkpoint)
    torch.nn.init.normal_(model.proposal_generator.expert_proposal_boxes.weight)
    DetectionCheckpointer(model, str(tmp_path)).save("dynamic")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = load(dynamic_cfg, str(tmp_path / "dynamic.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert "static proposals" not in caplog.text


def test_a_distributed_checkpoints_prefix_does_not_matter(checkpoint, dynamic_cfg, tmp_path):
    state = torch.load(checkpoint)["model"]
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "ddp.pth")
    one, other = load(dynamic_cfg, checkpoint), load(dynamic_cfg, str(tmp_path / "ddp.pth"))
    assert torch.equal(one.proposal_generator.expert_boxes, other.proposal_generator.expert_boxes)


def test_another_number_of_experts_is_reported_by_detectron2(checkpoint, dynamic_cfg, tmp_path, caplog):
    DetectionCheckpointer(load(dynamic_cfg, checkpoint), str(tmp_path)).save("dynamic")
    dynamic_cfg.MODEL.SparseRCNN.DPG.NUM_EXPERTS = 2
    caplog.clear()
    load(dynamic_cfg, str(tmp_path / "dynamic.pth"))
    assert "'proposal_generator.expert_proposal_boxes.weight'" in caplog.text
    assert "(32, 4)" in caplog.text and "(16, 4)" in caplog.text
