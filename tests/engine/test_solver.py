"""The optimizer's groups and clipping, and the scaling of the schedule to the batch."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import OmegaConf
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR, SequentialLR, StepLR

from dynamic_sparse_rcnn.engine import from_yaml
from dynamic_sparse_rcnn.engine.solver import ScheduleKeys, build_optimizer, keeping_rates, scale_to_batch_size


def make_model() -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({"backbone": torch.nn.Linear(3, 4), "head": torch.nn.Linear(4, 2)})


def clip_full_model(cfg, value=1.0):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = value


def test_the_backbone_has_its_own_learning_rate_and_every_parameter_is_in_one_group(tiny_cfg):
    tiny_cfg.SOLVER.BASE_LR = 1e-3
    tiny_cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    model = build_model(tiny_cfg)
    optimizer = build_optimizer(tiny_cfg, model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(1e-4 if name.startswith("backbone.") else 1e-3), name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {tiny_cfg.SOLVER.WEIGHT_DECAY}


def test_the_router_has_its_own_learning_rate(tiny_dynamic_cfg):
    solver = tiny_dynamic_cfg.SOLVER
    solver.BASE_LR, solver.BACKBONE_MULTIPLIER, solver.ROUTER_MULTIPLIER = 1e-3, 0.1, 10.0
    model = build_model(tiny_dynamic_cfg)
    rates = {
        id(p): group["lr"] for group in build_optimizer(tiny_dynamic_cfg, model).param_groups for p in group["params"]
    }
    assert all(rates[id(p)] == pytest.approx(1e-2) for p in model.proposal_generator.router.parameters())
    assert rates[id(model.proposal_generator.expert_proposal_boxes.weight)] == pytest.approx(1e-3)


@pytest.mark.parametrize("architecture", ["SparseRCNN", "DynamicSparseRCNN"])
def test_the_initial_boxes_have_their_own_learning_rate(tiny_dynamic_cfg, architecture):
    tiny_dynamic_cfg.MODEL.META_ARCHITECTURE = architecture
    solver = tiny_dynamic_cfg.SOLVER
    solver.BASE_LR, solver.INIT_BOXES_MULTIPLIER = 1e-3, 10.0
    model = build_model(tiny_dynamic_cfg)
    groups = build_optimizer(tiny_dynamic_cfg, model).param_groups
    fast = {id(p) for group in groups if group["lr"] == pytest.approx(1e-2) for p in group["params"]}
    (boxes,) = {name for name, parameter in model.named_parameters() if id(parameter) in fast}
    kind = "init" if architecture == "SparseRCNN" else "expert"
    assert boxes == f"proposal_generator.{kind}_proposal_boxes.weight"


def test_what_a_backbone_calls_router_learns_as_the_backbone(tiny_cfg):
    tiny_cfg.SOLVER.BASE_LR, tiny_cfg.SOLVER.BACKBONE_MULTIPLIER, tiny_cfg.SOLVER.ROUTER_MULTIPLIER = 1e-3, 0.1, 10.0
    experts = torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict({"router": torch.nn.Linear(2, 2)})})
    rates = [group["lr"] for group in build_optimizer(tiny_cfg, experts).param_groups]
    assert rates == [pytest.approx(1e-4)]


def test_what_is_exempt_has_no_weight_decay_and_nothing_is_by_default(tiny_cfg):
    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = torch.nn.Parameter(torch.zeros(1, 4, 8))
            self.attention = torch.nn.MultiheadAttention(8, 2)
            self.norm1 = torch.nn.LayerNorm(8)
            self.downsample = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1), torch.nn.BatchNorm2d(8))

    model = torch.nn.ModuleDict({"backbone": Positions(), "head": torch.nn.Linear(4, 2)})
    positions = {"backbone.pos_embed"}
    norms = {f"backbone.{x}.{kind}" for x in ("norm1", "downsample.1") for kind in ("weight", "bias")}
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert len(biases) == 6
    for kinds, exempt in (
        ((), set()),
        (("pos_embed",), positions),
        (("norm",), norms),
        (("bias",), biases),
        (("norm", "bias", "pos_embed"), positions | norms | biases),
    ):
        tiny_cfg.SOLVER.NO_WEIGHT_DECAY = kinds
        groups = build_optimizer(tiny_cfg, model).param_groups
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        found = {name for name, p in model.named_parameters() if decays[id(p)] == 0}
        assert found == exempt
        assert len(groups) == (2 if not exempt else 4 if "bias" in kinds else 3)


def test_an_unknown_exemption_is_refused(tiny_cfg):
    tiny_cfg.SOLVER.NO_WEIGHT_DECAY = ("norms",)
    with pytest.raises(ValueError, match=r"NO_WEIGHT_DECAY has \['norms'\]"):
        build_optimizer(tiny_cfg, make_model())


def test_layer_decay_needs_a_backbone_with_layers(tiny_cfg):
    tiny_cfg.SOLVER.LAYER_DECAY = 0.7
    with pytest.raises(ValueError, match=r"LAYER_DECAY is 0.7, but the backbone Linear.*build_vit_sfp_backbone"):
        build_optimizer(tiny_cfg, make_model())


def test_frozen_parameters_are_left_out(tiny_cfg):
    model = make_model()
    model["backbone"].requires_grad_(False)
    (group,) = build_optimizer(tiny_cfg, model).param_groups
    assert len(group["params"]) == 2


@pytest.mark.parametrize("norm", [0.5, 100.0])
def test_full_model_clipping_bounds_the_norm_of_all_gradients_together(tiny_cfg, norm):
    clip_full_model(tiny_cfg, norm)
    tiny_cfg.SOLVER.OPTIMIZER = "SGD"
    tiny_cfg.SOLVER.BASE_LR = 1.0
    tiny_cfg.SOLVER.MOMENTUM = 0.0
    tiny_cfg.SOLVER.WEIGHT_DECAY = 0.0
    model = make_model()
    optimizer = build_optimizer(tiny_cfg, model)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    step = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    gradient = torch.cat([g.flatten() for g in gradients])
    expected = gradient * min(1.0, norm / gradient.norm().item())
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)


def test_a_gradient_scaler_has_unscaled_before_the_clipping(tiny_cfg):
    clip_full_model(tiny_cfg)
    tiny_cfg.SOLVER.OPTIMIZER = "SGD"
    results = []
    for scale in (None, 1024.0):
        torch.manual_seed(0)
        model = make_model()
        optimizer = build_optimizer(tiny_cfg, model)
        loss = model["head"](model["backbone"](torch.ones(5, 3))).square().sum()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.gpu
def test_on_cuda_mixed_precision_clips_unscaled_gradients_of_adamw(tiny_cfg):
    clip_full_model(tiny_cfg)
    model = make_model().cuda()
    optimizer = build_optimizer(tiny_cfg, model)
    norms = []
    optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
    )
    scaler = torch.amp.GradScaler("cuda", init_scale=16.0)  # gradients of 100; more would overflow
    with torch.autocast("cuda"):
        loss = 100 * model["head"](model["backbone"](torch.ones(5, 3, device="cuda"))).float().square().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert norms == [pytest.approx(1.0, rel=1e-3)]


def test_an_unknown_optimizer_is_refused_by_name(tiny_cfg):
    tiny_cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match=r"SOLVER.OPTIMIZER is 'LION'.*ADAMW or SGD"):
        build_optimizer(tiny_cfg, make_model())


def test_the_schedule_is_scaled_to_the_batch_once_and_says_so(tiny_cfg, caplog):
    solver = tiny_cfg.SOLVER
    solver.BASE_LR, solver.STEPS, solver.MAX_ITER, solver.WARMUP_ITERS = 2.5e-5, (210000, 250000), 270000, 1000
    solver.CHECKPOINT_PERIOD, tiny_cfg.TEST.EVAL_PERIOD, solver.IMS_PER_BATCH = 5000, 7330, 8
    tiny_cfg.MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS = 75000
    with caplog.at_level(logging.INFO):
        scale_to_batch_size(tiny_cfg, from_yaml.SCHEDULE)
        scale_to_batch_size(tiny_cfg, from_yaml.SCHEDULE)
    assert pytest.approx(1.25e-5) == solver.BASE_LR
    assert (solver.STEPS, solver.MAX_ITER, solver.WARMUP_ITERS) == ((420000, 500000), 540000, 2000)
    assert (solver.CHECKPOINT_PERIOD, tiny_cfg.TEST.EVAL_PERIOD) == (10000, 14660)
    assert tiny_cfg.MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS == 150000
    assert len(caplog.records) == 1
    assert "Batch 8 instead of the reference 16" in caplog.text


def test_scaling_never_makes_a_period_zero_and_leaves_zero_as_never(tiny_cfg):
    tiny_cfg.SOLVER.CHECKPOINT_PERIOD, tiny_cfg.TEST.EVAL_PERIOD, tiny_cfg.SOLVER.IMS_PER_BATCH = 1, 0, 64
    scale_to_batch_size(tiny_cfg, from_yaml.SCHEDULE)
    assert (tiny_cfg.SOLVER.CHECKPOINT_PERIOD, tiny_cfg.TEST.EVAL_PERIOD) == (1, 0)


@pytest.mark.parametrize(("reference", "batch"), [(0, 4), (16, 16)])
def test_the_schedule_stays_as_written_when_switched_off_or_at_the_reference_batch(tiny_cfg, reference, batch):
    tiny_cfg.SOLVER.REFERENCE_BATCH_SIZE = reference
    tiny_cfg.SOLVER.IMS_PER_BATCH = batch
    before = tiny_cfg.dump()
    scale_to_batch_size(tiny_cfg, from_yaml.SCHEDULE)
    assert tiny_cfg.dump() == before


@pytest.mark.parametrize(("batch", "rate"), [(0, 1e-3), (None, 1e-3), (8, None)])
def test_a_schedule_that_cannot_be_scaled_is_refused(batch, rate):
    names = ("batch", "reference", "rate", "length")
    keys = ScheduleKeys(**{name: f"train.{name}" for name in names}, counts=())
    cfg = OmegaConf.create({"train": {"batch": batch, "reference": 16, "rate": rate, "length": 100}})
    with pytest.raises(ValueError, match=r"train\.batch is .* and train\.rate is .*train\.reference 0 keeps it"):
        scale_to_batch_size(cfg, keys)


def stepped(rate: float, decay: float, scheduler: Callable[[torch.optim.Optimizer], LRScheduler]) -> tuple[Any, Any]:
    """An optimizer with a group of its own rate, and its scheduler, after three steps."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups: list[dict[str, Any]] = [{"params": weights[:1]}, {"params": weights[1:], "lr": 10 * rate}]
    optimizer = torch.optim.AdamW(groups, rate, weight_decay=decay, betas=(0.8, 0.9))
    schedule = scheduler(optimizer)
    for _ in range(3):
        torch.stack(list(weights)).sum().backward()
        optimizer.step()
        schedule.step()
    return optimizer, schedule


def reload(saved: tuple[Any, Any], into: tuple[Any, Any]) -> list[dict]:
    with keeping_rates(*into):
        for part, state in zip(into, saved, strict=True):
            part.load_state_dict(copy.deepcopy(state.state_dict()))
    return [{k: v for k, v in group.items() if k != "params"} for group in into[0].param_groups]


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: StepLR(optimizer, 2),
        lambda optimizer: LRMultiplier(optimizer, CosineParamScheduler(1.0, 0.0), 10),
        lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=10),
        lambda optimizer: SequentialLR(optimizer, [ConstantLR(optimizer), StepLR(optimizer, 1)], [1]),
    ],
)
def test_loading_a_run_of_the_same_config_changes_nothing(scheduler):
    saved = stepped(0.01, 0.1, scheduler)
    expected = [{k: v for k, v in group.items() if k != "params"} for group in saved[0].param_groups]
    assert reload(saved, stepped(0.01, 0.1, scheduler)) == expected


def test_a_loaded_run_has_the_rates_and_decays_of_its_config_at_once():
    def scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return LRMultiplier(optimizer, CosineParamScheduler(1.0, 0.0), 10)

    loaded = stepped(0.002, 0.3, scheduler)
    first, second = reload(stepped(0.01, 0.1, scheduler), loaded)
    factor = 0.5 * (1 + math.cos(math.pi * 3 / 10))
    assert (first["lr"], second["lr"]) == (pytest.approx(0.002 * factor), pytest.approx(0.02 * factor))
    assert first["weight_decay"] == second["weight_decay"] == 0.3
    loaded[1].step()
    assert loaded[0].param_groups[0]["lr"] == pytest.approx(0.002 * 0.5 * (1 + math.cos(math.pi * 4 / 10)))
