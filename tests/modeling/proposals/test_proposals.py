"""Learned proposals: published start, detectron2's contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
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


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.6, 1.0])
def test_features_that_share_a_part_are_standard_normal_and_correlate(spread):
    features = LearnedProposalGenerator(num_proposals=200, channels=2000, init_feature_spread=spread)
    weights = features.init_proposal_features.weight.detach().double().numpy()
    assert weights.mean() == pytest.approx(0, abs=0.1) and weights.std() == pytest.approx(1, abs=0.05)
    # Two features have the variance of the common part in common.
    correlations = np.corrcoef(weights)[np.triu_indices(200, 1)]
    assert correlations.mean() == pytest.approx(1 - spread**2, abs=0.02)


@pytest.mark.parametrize("generator", ["LearnedProposalGenerator", "DynamicProposalGenerator"])
def test_the_config_says_how_far_apart_features_start(tiny_dynamic_cfg, generator):
    tiny_dynamic_cfg.MODEL.PROPOSAL_GENERATOR.NAME = generator
    distances = []
    for spread in (0.1, 1.0):
        tiny_dynamic_cfg.MODEL.SparseRCNN.INIT_FEATURE_SPREAD = spread
        levels = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(2, 6)}
        built = build_proposal_generator(tiny_dynamic_cfg, levels)
        (features,) = (value for name, value in built.state_dict().items() if name.endswith("proposal_features.weight"))
        distances.append(torch.pdist(features[:8]).mean().item())  # of the first expert
    assert distances[0] == pytest.approx(0.1 * distances[1], rel=0.3)


@pytest.mark.parametrize("spread", [-0.1, 1.1])
def test_a_spread_out_of_range_is_refused_by_key_and_value(spread):
    with pytest.raises(ValueError, match=rf"INIT_FEATURE_SPREAD must lie in \[0, 1\], got {spread}"):
        LearnedProposalGenerator(num_proposals=2, channels=8, init_feature_spread=spread)


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
