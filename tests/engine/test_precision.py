"""Mixed precision: what it is set by, what stays float32, how near it comes to float32."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from plain_losses import plain_losses
from torch import nn

from dynamic_sparse_rcnn import (
    BatchedTargets,
    DynamicConv,
    HungarianMatcher,
    MatchCostModel,
    StagePredictions,
    model_zoo,
)
from dynamic_sparse_rcnn.checkpoints.loading import load_for_evaluation
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine.from_yaml import evaluation_dtype, settings_of
from dynamic_sparse_rcnn.engine.precision import autocast_dtype
from dynamic_sparse_rcnn.engine.solver import build_optimizer, clip_full_model
from dynamic_sparse_rcnn.engine.step import StepTrainer
from dynamic_sparse_rcnn.engine.trainer import Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_precision_is_the_configs_and_on_the_cpu_bfloat16(caplog):
    assert autocast_dtype("float16", CUDA) == torch.float16
    assert autocast_dtype("bfloat16", CUDA) == autocast_dtype("bfloat16", CPU) == torch.bfloat16
    with caplog.at_level(logging.INFO):
        assert autocast_dtype("float16", CPU) == torch.bfloat16
    assert caplog.messages == ["SOLVER.AMP.PRECISION is float16; on the CPU mixed precision is bfloat16"]


@pytest.mark.parametrize("section", ["SOLVER", "TEST"])
def test_another_precision_is_an_error_where_it_is_asked_for(tiny_cfg, section):
    tiny_cfg[section].AMP.PRECISION = "fp8"
    read = {"SOLVER": settings_of, "TEST": evaluation_dtype}[section]
    read(tiny_cfg)
    tiny_cfg[section].AMP.ENABLED = True
    with pytest.raises(ValueError, match=rf"{section}\.AMP\.PRECISION is 'fp8': use float16 or bfloat16"):
        read(tiny_cfg)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_float16_alone_has_a_scaler(tiny_cfg, dtype):
    model = build_model(tiny_cfg)
    step = StepTrainer(model, [], build_optimizer(tiny_cfg, model), dtype=dtype)
    assert (step.grad_scaler is not None) == (dtype == torch.float16)
    assert ("grad_scaler" in step.state_dict()) == (dtype == torch.float16)


def test_a_run_is_resumed_in_float16_from_a_checkpoint_without_a_scaler(tiny_cfg):
    model = build_model(tiny_cfg)
    first = StepTrainer(model, [], build_optimizer(tiny_cfg, model))
    first.iter = 4
    later = StepTrainer(model, [], build_optimizer(tiny_cfg, model), dtype=torch.float16)
    scale = later.grad_scaler.get_scale()
    later.load_state_dict(first.state_dict())
    assert (later.iter, later.grad_scaler.get_scale()) == (4, scale)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self.linear(batch).dtype == torch.bfloat16
        return {"loss": self.linear(batch).float().square().mean()}


def test_a_compiled_model_learns_in_bfloat16_step_after_step():
    model: Any = torch.compile(Line(), backend="eager")
    loop = StepTrainer(model, [torch.ones(2, 1)] * 3, torch.optim.SGD(model.parameters(), 0.1), dtype=torch.bfloat16)
    losses = []
    with EventStorage() as storage:
        for _ in range(3):
            loop.run_step()
            losses.append(storage.latest()["total_loss"][0])
    assert losses[0] > losses[1] > losses[2]


def kept(module: nn.Module, seen: dict[str, list], name: str) -> None:
    module.register_forward_hook(lambda _, given, result: seen.setdefault(name, []).append((given, result)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_matching_and_losses_are_float32_under_autocast(tiny_cfg, make_inputs, dtype):
    model = build_model(tiny_cfg)
    inputs = make_inputs([3, 0, 2])
    seen = {}
    parts = {"head": model.head, "costs": model.criterion.cost_model, "matcher": model.criterion.matcher}
    for name, module in parts.items():
        kept(module, seen, name)
    for stage in model.head.head_series:
        kept(stage, seen, "stages")
    with torch.autocast("cpu", dtype=dtype):
        losses = model(inputs)
    ((_, start, _), predictions) = seen["head"][0]
    assert predictions.logits.dtype == dtype  # so autocast was at work
    check_decoding(model, start, [result[1] for _, result in seen["stages"]], predictions)
    check_matching(tiny_cfg, predictions, [x["instances"] for x in inputs], seen)
    expected = plain_losses(predictions, [x["instances"] for x in inputs])
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4), name


def check_decoding(model: Any, start: torch.Tensor, deltas: list, predictions: StagePredictions) -> None:
    """The boxes are those that float64 makes of the same deltas; half precision would be pixels away."""
    boxes = [start, *predictions.boxes[:-1]]
    for given, change, found in zip(boxes, deltas, predictions.boxes, strict=True):
        expected = model.head.box_transform.apply_deltas(change.double().flatten(0, 1), given.double().flatten(0, 1))
        torch.testing.assert_close(found.flatten(0, 1), expected.float(), rtol=1e-5, atol=1e-3)


def check_matching(cfg: CfgNode, predictions: StagePredictions, instances: list, seen: dict[str, list]) -> None:
    """Costs are float32, and the assignment is that of the same predictions without autocast."""
    (_, costs), (_, assignment) = seen["costs"][0], seen["matcher"][0]
    assert costs.cost.dtype == costs.iou.dtype == torch.float32
    exact = StagePredictions(predictions.logits.detach().float(), predictions.boxes.detach())
    expected = MatchCostModel(cfg)(exact, BatchedTargets.from_instances(instances, CPU))
    torch.testing.assert_close(costs.cost, expected.cost)
    assert torch.equal(assignment.gt_index, HungarianMatcher()(expected).gt_index)


def learn(model: nn.Module, cfg: CfgNode, batches: list, steps: int, dtype: torch.dtype | None) -> list[float]:
    """The total losses of a training."""
    model = copy.deepcopy(model)
    batches = batches * -(-steps // len(batches))
    if dtype == torch.float16 and cfg.MODEL.DEVICE == "cpu":
        loop = float16_loop_on_the_cpu(model, cfg, batches)
    else:
        loop = StepTrainer(model, batches, build_optimizer(cfg, model), dtype=dtype)
    losses = []
    with EventStorage() as storage:
        for loop.iter in range(steps):
            storage.iter = loop.iter
            loop.run_step()
            losses.append(storage.latest()["total_loss"][0])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return losses


def float16_loop_on_the_cpu(model: nn.Module, cfg: CfgNode, batches: list) -> StepTrainer:
    """Which trainings do not use, being slow. The optimiser is as on a GPU: not fused."""
    optimizer = torch.optim.AdamW(model.parameters(), cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    clip_full_model(optimizer, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE, 2.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # the default is halved in the first steps, which are lost
    return StepTrainer(model, batches, optimizer, dtype=torch.float16, grad_scaler=scaler)


def test_rois_beyond_the_image_have_finite_gradients_in_float16():
    torch.manual_seed(0)
    exact = DynamicConv(channels=32, dynamic_channels=16, pooler_resolution=7)
    nn.init.normal_(exact.norm1.bias, std=1e-3)  # what a step gives it
    half = copy.deepcopy(exact)
    features, rois = torch.randn(6, 32), torch.randn(6, 49, 32)
    rois[:3, :20] = 0
    for module, dtype in ((exact, torch.float32), (half, torch.float16)):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            seen = module(features, rois)
        (4 * seen.float().square().sum()).backward()
    for (name, parameter), other in zip(exact.named_parameters(), half.parameters(), strict=True):
        assert other.grad.isfinite().all(), name
        difference = (other.grad - parameter.grad).norm() / parameter.grad.norm()
        assert difference < 0.05, f"{name}: {difference}"


def check_learning(cfg: CfgNode, make_inputs, steps: int, dtype: torch.dtype, band: float) -> None:
    """In mixed precision the loss falls, and over the last fifth of the steps is near float32's, relatively."""
    cfg.SOLVER.BASE_LR, cfg.SOLVER.CLIP_GRADIENTS.ENABLED = 1e-3, True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.MODEL.SparseRCNN.INIT_BOXES = "full_model", "grid"
    batches = [make_inputs([3, 2], [(64, 96)] * 2) for _ in range(4)]
    model = build_model(cfg)
    last = max(1, steps // 5)
    exact, mixed = (torch.tensor(learn(model, cfg, batches, steps, x)) for x in (None, dtype))
    assert mixed.isfinite().all()
    assert mixed[-last:].mean() < 0.8 * mixed[:last].mean()
    assert mixed[-last:].mean() == pytest.approx(exact[-last:].mean(), rel=band)


@pytest.mark.parametrize(
    ("architecture", "dtype", "steps"),
    [
        ("SparseRCNN", torch.bfloat16, 20),
        ("DynamicSparseRCNN", torch.bfloat16, 20),
        pytest.param("DynamicSparseRCNN", torch.float16, 10, marks=pytest.mark.slow),
    ],
)
def test_mixed_precision_on_the_cpu_learns_as_float32_does(tiny_dynamic_cfg, make_inputs, architecture, dtype, steps):
    tiny_dynamic_cfg.MODEL.META_ARCHITECTURE = architecture
    check_learning(tiny_dynamic_cfg, make_inputs, steps, dtype, band=0.25)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["SparseRCNN", "DynamicSparseRCNN"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_200_steps_on_a_gpu_learn_as_float32_does(tiny_dynamic_cfg, make_inputs, architecture, dtype):
    tiny_dynamic_cfg.MODEL.DEVICE, tiny_dynamic_cfg.MODEL.META_ARCHITECTURE = "cuda", architecture
    check_learning(tiny_dynamic_cfg, make_inputs, 200, dtype, band=0.25)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> str:
    """Images that the detector which comes with the package was not trained on."""
    paths = generate_shapes(tmp_path_factory.mktemp("drawn"), "unseen", ShapesConfig(num_images=24))
    return f"coco:{paths.json_path}:{paths.image_folder}"


def evaluate(drawn: str, folder: Path, precision: str | None) -> dict[str, float]:
    """COCO's metrics of the detector that comes with the package."""
    cfg = model_zoo.get_config("shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml", trained=True)
    cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = "cuda" if torch.cuda.is_available() else "cpu", 0
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (drawn,)
    cfg.MODEL.SparseRCNN.NUM_CLASSES, cfg.OUTPUT_DIR = 5, str(folder)
    cfg.TEST.AMP.ENABLED, cfg.TEST.AMP.PRECISION = precision is not None, precision or "float16"
    model = build_model(cfg)
    load_for_evaluation(model, cfg.MODEL.WEIGHTS)
    results: dict[str, dict[str, float]] = Trainer.test(cfg, model)
    return results["bbox"]


@pytest.mark.slow
def test_an_evaluation_in_mixed_precision_has_float32s_ap_to_a_point(drawn, tmp_path):
    exact = evaluate(drawn, tmp_path / "exact", None)
    mixed = evaluate(drawn, tmp_path / "mixed", "bfloat16")
    assert exact["AP"] > 60
    assert mixed["AP"] != exact["AP"]  # so autocast was at work
    assert mixed["AP"] == pytest.approx(exact["AP"], abs=1)
    assert mixed["AP50"] == pytest.approx(exact["AP50"], abs=1)
