"""Learned proposals: published start, detectron2's contract."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model, build_proposal_generator
from detectron2.structures import ImageList

from dynamic_sparse_rcnn import LearnedProposalGenerator
from dynamic_sparse_rcnn.modeling.proposals.learned import initial_boxes

IMAGES = ImageList.from_tensors([torch.zeros(3, 64, 96), torch.zeros(3, 40, 120)])


def test_boxes_start_as_the_whole_of_each_image():
    proposals, losses = LearnedProposalGenerator(num_proposals=5, channels=8)(IMAGES, {})
    assert losses == {}
    assert proposals[0].proposal_boxes.tensor.tolist() == [[0, 0, 96, 64]] * 5
    assert proposals[1].proposal_boxes.tensor.tolist() == [[0, 0, 120, 40]] * 5
    assert proposals[0].image_size == (64, 96)


def test_features_start_standard_normal():
    features = LearnedProposalGenerator(num_proposals=300, channels=64).init_proposal_features.weight
    assert features.mean().item() == pytest.approx(0, abs=0.03)
    assert features.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("number", [1, 2, 5, 20, 49])
@pytest.mark.parametrize("kind", ["image", "grid", "random"])
def test_initial_boxes_have_their_centers_inside_the_image(kind, number):
    boxes = initial_boxes(kind, number)
    assert boxes.shape == (number, 4)
    assert boxes.dtype == torch.float32
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, 2:] > 0).all()


def test_a_grid_covers_the_image_without_two_equal_boxes():
    boxes = initial_boxes("grid", 20)
    assert len(boxes.unique(dim=0)) == 20
    centers, size = boxes[:, :2], boxes[:, 2:]
    points = torch.rand(500, 2)
    inside = ((points[:, None] - centers).abs() <= size / 2).all(-1)
    assert inside.any(1).all()


def test_an_unknown_start_is_refused_by_key_and_value():
    with pytest.raises(ValueError, match=r"MODEL.SparseRCNN.INIT_BOXES is 'middle'.*image, grid, random"):
        initial_boxes("middle", 5)


def test_no_proposals_are_refused_by_key():
    with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.NUM_PROPOSALS is 0"):
        LearnedProposalGenerator(num_proposals=0, channels=8)


def test_boxes_and_features_learn(tiny_cfg, make_inputs):
    model = build_model(tiny_cfg)
    sum(model(make_inputs([2, 1])).values()).backward()
    generator = model.proposal_generator
    assert generator.init_proposal_features.weight.grad.abs().sum() > 0
    assert generator.init_proposal_boxes.weight.grad.abs().sum() > 0


def test_detectron2_builds_and_runs_it_in_its_own_proposal_network(tiny_cfg, make_inputs):
    tiny_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LearnedProposalGenerator"
    tiny_cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    assert isinstance(build_proposal_generator(tiny_cfg, {}), LearnedProposalGenerator)
    inputs = make_inputs([1, 2])
    with torch.no_grad():
        outputs = build_model(tiny_cfg).eval()(inputs)
    for given, output in zip(inputs, outputs, strict=True):
        expected = [0, 0, given["width"], given["height"]]
        assert output["proposals"].proposal_boxes.tensor.tolist() == [expected] * 8
