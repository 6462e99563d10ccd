"""Dynamic proposals: mixed per image from several experts, static with one expert."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from small_generators import IMAGES, SIZES, make_features, make_generator
from small_runs import use_resnet_18
from torchvision.ops import box_convert

from dynamic_sparse_rcnn.engine.solver import build_optimizer


@pytest.mark.parametrize("num_experts", [1, 2, 4, 8])
def test_weights_of_the_experts_add_up_to_one_for_each_proposal(num_experts):
    proposals, losses = make_generator(num_experts)(IMAGES, make_features())
    assert losses == {}
    for x in proposals:
        assert x.expert_weights.shape == (6, num_experts)
        assert (x.expert_weights > 0).all()
        torch.testing.assert_close(x.expert_weights.sum(1), torch.ones(6))


def test_mixing_equals_a_written_out_float64_loop():
    generator = make_generator()
    boxes, features = generator.expert_boxes.double(), generator.expert_features.double()
    proposals, _ = generator(IMAGES, make_features())
    for x, (height, width) in zip(proposals, SIZES, strict=True):
        for p in range(6):
            box, feature = torch.zeros(4, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
            for e in range(3):
                box += x.expert_weights[p, e].double() * boxes[e, p]
                feature += x.expert_weights[p, e].double() * features[e, p]
            cx, cy, w, h = box.tolist()
            corners = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
            assert x.proposal_boxes.tensor[p].tolist() == pytest.approx(corners, abs=1e-4)
            torch.testing.assert_close(x.proposal_features[p].double(), feature, rtol=1e-5, atol=1e-6)


def test_images_get_proposals_of_their_own():
    generator = make_generator()
    torch.nn.init.normal_(generator.router.logits.weight)
    (first, second), _ = generator(IMAGES, make_features())
    assert (first.expert_weights - second.expert_weights).abs().max() > 0.01
    assert (first.proposal_features - second.proposal_features).abs().max() > 0.01


def test_one_expert_equals_the_learned_generator_exactly(tiny_dynamic_cfg, make_inputs):
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.NUM_EXPERTS = 1
    model = build_model(tiny_dynamic_cfg)
    tiny_dynamic_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LearnedProposalGenerator"
    static = build_model(tiny_dynamic_cfg)
    assert model.state_dict().keys() == static.state_dict().keys()
    static.load_state_dict(model.state_dict(), strict=True)
    inputs = make_inputs([2, 3])
    losses, expected = model(inputs), static(inputs)
    assert losses == expected
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for one, other in zip(model.parameters(), static.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("init_boxes", ["image", "random"])
def test_from_one_seed_one_expert_starts_as_static_proposals_do(tiny_dynamic_cfg, init_boxes):
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.NUM_EXPERTS = 1
    tiny_dynamic_cfg.MODEL.SparseRCNN.INIT_BOXES = init_boxes
    states = []
    for generator in ("DynamicProposalGenerator", "LearnedProposalGenerator"):
        tiny_dynamic_cfg.MODEL.PROPOSAL_GENERATOR.NAME = generator
        torch.manual_seed(5)
        states.append(build_model(tiny_dynamic_cfg).state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_gradients_reach_every_expert_and_all_of_the_router_at_step_0(tiny_dynamic_cfg, make_inputs):
    model = build_model(tiny_dynamic_cfg)
    with EventStorage(0):
        sum(model(make_inputs([3, 2])).values()).backward()
    generator = model.proposal_generator
    for name in ("expert_proposal_boxes", "expert_proposal_features"):
        gradient = generator.get_submodule(name).weight.grad.unflatten(0, (4, 8))
        assert (gradient.abs().sum((1, 2)) > 0).all()
    for name, parameter in generator.router.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["proposal_boxes", "proposal_features"])
def test_boxes_and_features_each_teach_the_router_and_all_experts(kind):
    generator = make_generator()
    proposals, _ = generator(IMAGES, make_features())
    values = [x.get(kind).tensor if kind == "proposal_boxes" else x.get(kind) for x in proposals]
    sum((x * torch.randn_like(x)).sum() for x in values).backward()
    for parameter in generator.router.parameters():
        assert parameter.grad is not None and parameter.grad.any()
    gradient = generator.get_submodule(f"expert_{kind}").weight.grad
    assert gradient.unflatten(0, (3, 6)).abs().sum(2).all()


def test_the_experts_come_apart_and_the_weights_follow_the_image_in_training(tiny_dynamic_cfg, make_inputs):
    tiny_dynamic_cfg.SOLVER.BASE_LR, tiny_dynamic_cfg.SOLVER.ROUTER_MULTIPLIER = 1e-3, 10.0
    model = build_model(tiny_dynamic_cfg)
    inputs = make_inputs([3, 3])
    optimizer = build_optimizer(tiny_dynamic_cfg, model)

    def variance_over_images() -> float:
        with torch.no_grad():
            images = model.preprocess_image(inputs)
            proposals, _ = model.proposal_generator(images, model.backbone(images.tensor))
        return torch.stack([x.expert_weights for x in proposals]).var(0).mean().item()

    before = variance_over_images()
    for _ in range(50):
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()
    assert variance_over_images() > 2 * before


def test_the_router_looks_at_the_levels_that_the_config_names(tiny_dynamic_cfg):
    pooled = list(tiny_dynamic_cfg.MODEL.ROI_HEADS.IN_FEATURES)
    assert build_model(tiny_dynamic_cfg).proposal_generator.in_features == pooled
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.IN_FEATURES = pooled[:2]
    assert build_model(tiny_dynamic_cfg).proposal_generator.in_features == pooled[:2]
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.STAIRCASE = False
    assert build_model(tiny_dynamic_cfg).proposal_generator.in_features == pooled[1:2]
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.IN_FEATURES = ["p7"]
    with pytest.raises(ValueError, match=r"DPG.IN_FEATURES .* has \['p7'\], which the backbone does not give: choose"):
        build_model(tiny_dynamic_cfg)


@pytest.mark.parametrize("init_boxes", ["image", "grid", "random"])
def test_the_first_expert_starts_as_sparse_rcnn_and_the_others_around_it(init_boxes):
    generator = make_generator(4, init_boxes=init_boxes)
    boxes, features = generator.expert_boxes, generator.expert_features
    if init_boxes == "image":
        assert boxes[0].tolist() == [[0.5, 0.5, 1, 1]] * 6
    assert (boxes[..., 2:] > 0).all()
    for values in (boxes, features):
        torch.testing.assert_close(values.mean(0), values[0])  # all weights equal: the first expert
        for one in range(4):
            for other in range(one):
                assert (values[one] - values[other]).abs().mean() > 0.05
    assert (features[1:] - features[0]).abs().max() <= 0.5 * features[0].square().mean().sqrt()


def test_experts_start_alike_where_the_config_says_so():
    generator = make_generator(4, expert_init=0.0)
    for values in (generator.expert_boxes, generator.expert_features):
        assert torch.equal(values, values[:1].expand_as(values))


def test_autocast_mixes_in_float32(tiny_dynamic_cfg, make_inputs):
    model = build_model(use_resnet_18(tiny_dynamic_cfg))
    inputs = make_inputs([2, 1])
    exact = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = model.preprocess_image(inputs)
        proposals, _ = model.proposal_generator(images, model.backbone(images.tensor))
        rough = model(inputs)
    for x in proposals:
        assert {x.proposal_boxes.tensor.dtype, x.proposal_features.dtype, x.expert_weights.dtype} == {torch.float32}
    for name, loss in rough.items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.15, abs=0.1), name


def test_neighbors_in_the_batch_leave_an_images_weights_nearly_alone(tiny_dynamic_cfg):
    """What remains is the backbone's: its convolutions see something else beyond the image's border."""
    model = build_model(use_resnet_18(tiny_dynamic_cfg))
    generator = model.proposal_generator
    torch.nn.init.normal_(generator.router.logits.weight, std=4)
    small, other, large = (
        {"image": 255 * F.interpolate(torch.rand(1, 3, 8, 10) ** power, size, mode="bilinear")[0]}
        for size, power in [((480, 640), 1), ((480, 640), 3), ((640, 800), 5)]
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # features as large as those of a trained backbone

    @torch.no_grad()
    def weights_of_first(*inputs, sizes=None) -> torch.Tensor:
        images = model.preprocess_image(list(inputs))
        return generator.expert_weights(model.backbone(images.tensor), sizes or images.image_sizes)[0]

    weights_of_first(small, other)
    model.eval()
    alone = weights_of_first(small)
    remainder = (weights_of_first(small, large) - alone).abs().mean()
    between_images = (weights_of_first(other) - alone).abs().mean()
    over_all_of_the_batch = (weights_of_first(small, large, sizes=[(640, 800)] * 2) - alone).abs().mean()
    assert remainder < 0.4 * between_images
    assert remainder < 0.5 * over_all_of_the_batch


def test_detectron2_builds_and_runs_it_in_its_own_proposal_network(tiny_dynamic_cfg, make_inputs):
    tiny_dynamic_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "DynamicProposalGenerator"
    tiny_dynamic_cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    model = build_model(tiny_dynamic_cfg).eval()
    with torch.no_grad():
        outputs = model(make_inputs([1, 2]))
    boxes = box_convert(model.proposal_generator.expert_boxes, "cxcywh", "xyxy")
    for output in outputs:
        found = output["proposals"].proposal_boxes.tensor
        height, width = output["proposals"].image_size
        limits = boxes.detach() * torch.tensor([width, height, width, height])
        inside = (limits.amin(0) - 1e-3).clamp(min=0) <= found
        assert found.shape == (8, 4) and inside.all()


@pytest.mark.parametrize("staircase", [True, False])
def test_names_are_stable(tiny_dynamic_cfg, staircase):
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.STAIRCASE = staircase
    state = build_model(tiny_dynamic_cfg).state_dict()
    ours = {name: tuple(value.shape) for name, value in state.items() if not name.startswith(("backbone.", "head."))}
    prefix = "proposal_generator."
    channels = [32, 64, 96, 128] if staircase else [32]
    expected = {
        f"{prefix}expert_proposal_boxes.weight": (4 * 8, 4),
        f"{prefix}expert_proposal_features.weight": (4 * 8, 32),
        f"{prefix}router.hidden.weight": (16, 36),
        f"{prefix}router.hidden.bias": (16,),
        f"{prefix}router.logits.weight": (4 * 8, 16),
        f"{prefix}router.logits.bias": (4 * 8,),
    }
    for level, number in enumerate(channels):
        expected[f"{prefix}router.downsamplings.{level}.weight"] = (number, 1, 3, 3)
        expected[f"{prefix}router.downsamplings.{level}.bias"] = (number,)
    assert ours == expected


@pytest.mark.parametrize("levels", [["p5"], ["p3", "p4", "p5"], ["p2", "p3", "p4", "p5", "p6"]])
def test_any_number_of_levels_trains(tiny_dynamic_cfg, make_inputs, levels):
    tiny_dynamic_cfg.MODEL.ROI_HEADS.IN_FEATURES = levels
    model = build_model(tiny_dynamic_cfg)
    sum(model(make_inputs([2, 1])).values()).backward()
    assert len(model.proposal_generator.router.downsamplings) == len(levels)
    assert all(parameter.grad is not None for parameter in model.proposal_generator.parameters())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_load_and_run_like_the_original(tiny_dynamic_cfg, make_inputs, clone):
    model = build_model(tiny_dynamic_cfg).eval()
    twin = clone(model)
    twin.load_state_dict(model.state_dict())
    inputs = make_inputs([1, 2])
    for one, other in zip(model(inputs), twin(inputs), strict=True):
        assert torch.equal(one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)


@pytest.mark.parametrize(
    "wrong", [{"NUM_EXPERTS": 0}, {"EXPERT_INIT": 1.0}, {"TEMPERATURE": 0.0}, {"POOL_SIZE": 0}, {"HIDDEN_DIM": 0}]
)
def test_values_that_mean_nothing_are_refused_by_key(tiny_dynamic_cfg, wrong):
    for key, value in wrong.items():
        tiny_dynamic_cfg.MODEL.SparseRCNN.DPG[key] = value
        with pytest.raises(ValueError, match=rf"MODEL\.SparseRCNN\.DPG needs .*{key}"):
            build_model(tiny_dynamic_cfg)
