"""Lazy configs say what the yaml files say, and train and evaluate as they do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from ranks import run_ranks
from train_net import argument_parser

from dynamic_sparse_rcnn import (
    DynamicHead,
    DynamicProposalGenerator,
    Predictor,
    TemperatureSchedule,
    model_zoo,
)
from dynamic_sparse_rcnn.config_reading import ConfigError
from dynamic_sparse_rcnn.data.mapper import build_augmentations
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine import from_lazy, from_yaml
from dynamic_sparse_rcnn.engine import main as engine_main
from dynamic_sparse_rcnn.engine.solver import build_optimizer, scale_to_batch_size
from dynamic_sparse_rcnn.report.stages import evaluate_run

NAMES = ["sparse_rcnn_R_50_FPN_300pro_3x", "dynamic_sparse_rcnn_R_50_FPN_300pro_3x"]
SMALL = {
    "model.proposal_generator.num_proposals": 10,
    "model.head.stages.num_stages": 2,
    "model.head.stages.num_classes": 5,
    "model.head.stages.feedforward_channels": 64,
}


def small_yaml_cfg(name: str):
    cfg = model_zoo.get_config(f"coco/{name}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    node = cfg.MODEL.SparseRCNN
    node.NUM_PROPOSALS, node.NUM_HEADS, node.NUM_CLASSES, node.DIM_FEEDFORWARD = 10, 2, 5, 64
    return cfg


def small_lazy_cfg(name: str, **overrides):
    cfg = model_zoo.get_config(f"lazy/{name}.py")
    return LazyConfig.apply_overrides(cfg, [f"{key}={value}" for key, value in (SMALL | overrides).items()])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_both_routes_give_the_same_parameters(name):
    cfg = model_zoo.get_config(f"coco/{name}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    of_yaml, of_lazy = build_model(cfg), instantiate(model_zoo.get_config(f"lazy/{name}.py").model)
    shapes = [{key: tuple(value.shape) for key, value in model.state_dict().items()} for model in (of_yaml, of_lazy)]
    assert shapes[0] == shapes[1]
    learning = [{key for key, value in model.named_parameters() if value.requires_grad} for model in (of_yaml, of_lazy)]
    assert learning[0] == learning[1]
    assert type(of_yaml) is type(of_lazy)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_both_routes_give_the_same_losses_and_detections_from_one_state_dict(name, make_inputs):
    of_yaml, of_lazy = build_model(small_yaml_cfg(name)), instantiate(small_lazy_cfg(name).model)
    of_lazy.load_state_dict(of_yaml.state_dict())
    inputs = make_inputs([2, 3])
    first, second = of_yaml.train()(inputs), of_lazy.train()(inputs)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.allclose(value, second[key], rtol=1e-6), key
    with torch.no_grad():
        detections = [model.eval()(inputs)[1]["instances"] for model in (of_yaml, of_lazy)]
    assert len(detections[0]) == len(detections[1]) > 0
    assert torch.allclose(detections[0].pred_boxes.tensor, detections[1].pred_boxes.tensor, atol=1e-3)
    assert torch.equal(detections[0].scores, detections[1].scores)


@pytest.mark.parametrize("name", NAMES)
def test_both_routes_train_alike(name):
    cfg, lazy = model_zoo.get_config(f"coco/{name}.yaml"), model_zoo.get_config(f"lazy/{name}.py")
    solver = cfg.SOLVER
    assert lazy.train.max_iter == solver.MAX_ITER
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert (lazy.train.eval_period, lazy.train.seed) == (cfg.TEST.EVAL_PERIOD, cfg.SEED)
    assert (lazy.train.checkpointer.period, lazy.dataloader.train.total_batch_size) == (solver.CHECKPOINT_PERIOD, 16)
    assert (lazy.optimizer.lr, lazy.optimizer.weight_decay) == (solver.BASE_LR, solver.WEIGHT_DECAY)
    assert lazy.train.max_gradient_norm == solver.CLIP_GRADIENTS.CLIP_VALUE
    factor = instantiate(lazy.lr_multiplier)
    expected = {0: solver.WARMUP_FACTOR, solver.WARMUP_ITERS: 1.0}
    for step, rate in zip((*solver.STEPS, solver.MAX_ITER - 1), (0.1, 0.01, 0.01), strict=True):
        expected |= {step: rate}
    for iteration, rate in expected.items():
        assert factor(iteration / solver.MAX_ITER) == pytest.approx(rate, rel=1e-3), iteration
    for is_train, mapper in ((True, lazy.dataloader.train.mapper), (False, lazy.dataloader.test.mapper)):
        augmentations = instantiate(mapper).augmentations.augs
        assert [type(x) for x in augmentations] == [type(x) for x in build_augmentations(cfg, is_train)]
        assert str(list(augmentations[-1 - is_train].short_edge_length)[-1]) == "800"
    assert lazy.dataloader.train.mapper.image_format == cfg.INPUT.FORMAT


def test_both_routes_optimise_the_same_parameters_alike():
    name = NAMES[0]
    cfg, lazy = small_yaml_cfg(name), small_lazy_cfg(name)
    model = build_model(cfg)
    lazy.optimizer.params.model = model
    for optimizer in (build_optimizer(cfg, model), instantiate(lazy.optimizer)):
        rates = {
            id(parameter): (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        assert rates == {id(p): (2.5e-5, 1e-4) for p in model.parameters() if p.requires_grad}


@pytest.fixture
def overrides(tmp_path) -> list[str]:
    paths = generate_shapes(tmp_path / "shapes", "train", ShapesConfig(num_images=4, image_size=64))
    data = f"coco:{paths.json_path}:{paths.image_folder}"
    values = SMALL | {
        "model.backbone.bottom_up.stages.norm": "BN",
        "model.proposal_generator.hidden_channels": 8,
        "dataloader.train.dataset.name": f"'{data}'",
        "dataloader.test.dataset.name": f"'{data}'",
        "dataloader.train.total_batch_size": 2,
        "dataloader.train.num_workers": 0,
        "dataloader.test.num_workers": 0,
        "dataloader.train.mapper.augmentations.1.short_edge_length": "[64]",
        "dataloader.train.mapper.augmentations.0.prob": 0,
        "dataloader.test.mapper.augmentations.0.short_edge_length": 64,
        "train.init_checkpoint": "''",
        "train.device": "cpu",
        "train.output_dir": str(tmp_path / "run"),
        "train.max_iter": 3,
        "train.reference_batch_size": 0,
        "train.seed": -1,  # drawn once for a run, also one that goes on
        "train.checkpointer.period": 2,
        # What yaml configs can do.
        "train.accumulate_steps": 2,
        "train.ema.enabled": True,
        "train.test_loss": True,
        "dataloader.evaluator.voc_metric": "voc2012",
    }
    return [f"{key}={value}" for key, value in values.items()]


@pytest.mark.slow
def test_a_lazy_config_trains_resumes_and_evaluates_from_the_command_line(overrides, tmp_path, monkeypatch):
    config = model_zoo.get_config_file(f"lazy/{NAMES[1]}.py")

    def run(*options: str):
        flags = [x for x in options if x.startswith("--")]
        pairs = [*overrides, *(x for x in options if not x.startswith("--"))]
        return engine_main.main(argument_parser().parse_args(["--config-file", config, *flags, *pairs]))

    run()
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_final.pth"
    assert ">3 of 3</td>" in (tmp_path / "run/report.html").read_text()
    evaluate_run(tmp_path / "run")
    stages = json.loads((tmp_path / "run/inference_best/stages.json").read_text())
    assert [{"AP", "AP50", "AP-ring"} <= stage.keys() for stage in stages] == [True, True]
    saved = torch.load(tmp_path / "run/model_final.pth")
    assert saved["class_names"] == ["circle", "square", "triangle", "star", "ring"]
    (tmp_path / "run/last_checkpoint").write_text("model_0000001.pth")  # as if it had been killed after that
    run("--resume")
    resumed = torch.load(tmp_path / "run/model_final.pth")
    assert resumed["iteration"] == saved["iteration"] == 2
    torch.testing.assert_close(resumed["model"], saved["model"], rtol=0, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    names = set().union(*lines)
    assert {"bbox/AP", "voc2012/AP", "proposals/recall50", "validation/loss_giou_0", "total_loss"} <= names
    assert torch.load(tmp_path / "run/model_best.pth")["metric"]["name"] == "bbox/AP"
    assert "4 images, 11 boxes, 5 classes" in (tmp_path / "run/log.txt").read_text()
    assert "(proposal_generator)" in (tmp_path / "run/log.txt").read_text()
    run("--resume")  # a run that is done is only evaluated once more
    assert "All 3 iterations are done: evaluating once more" in (tmp_path / "run/log.txt").read_text()
    assert torch.load(tmp_path / "run/model_final.pth")["iteration"] == 2
    mixed: list[bool] = []
    forward = DynamicHead.forward
    monkeypatch.setattr(
        DynamicHead, "forward", lambda *x: mixed.append(torch.is_autocast_enabled("cpu")) or forward(*x)
    )
    weights = f"train.init_checkpoint={tmp_path / 'run/model_final.pth'}"
    for precision, is_mixed in (("train.amp.evaluation=True", True), ("train.amp.enabled=True", False)):
        assert "AP50" in run("--eval-only", weights, precision)["bbox"]
        assert set(mixed) == {is_mixed}
        mixed.clear()
    with pytest.raises(ValueError, match=r"train\.init_checkpoint"):
        run("--eval-only")
    with pytest.raises(FileNotFoundError, match=r"finds no checkpoint in .*nothing"):
        run("--eval-only", "--resume", f"train.output_dir={tmp_path / 'nothing'}")
    predictor = Predictor(weights=str(tmp_path / "run/model_final.pth"), score_threshold=0)
    assert predictor.classes.names == ("circle", "square", "triangle", "star", "ring")
    assert len(predictor(np.zeros((64, 64, 3), np.uint8)).instances) > 0
    left = ["--config-file", str(tmp_path / "run/config.yaml"), "--eval-only", "--resume"]
    assert "AP50" in engine_main.main(argument_parser().parse_args(left))["bbox"]


@pytest.mark.slow
def test_a_lazy_config_runs_on_several_processes(overrides, tmp_path):
    config = model_zoo.get_config_file(f"lazy/{NAMES[1]}.py")
    arguments = argument_parser().parse_args(
        ["--config-file", config, *overrides, "train.max_iter=1", "train.accumulate_steps=1"]
    )
    run_ranks(2, engine_main.main, arguments)
    assert torch.load(tmp_path / "run/model_final.pth")["iteration"] == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert {"bbox/AP", "total_loss"} <= set().union(*lines)


def test_a_batch_of_another_size_scales_the_schedule_as_in_yaml_configs():
    lazy = small_lazy_cfg(NAMES[1], **{"dataloader.train.total_batch_size": 8})
    scale_to_batch_size(lazy, from_lazy.SCHEDULE)
    cfg = model_zoo.get_config(f"coco/{NAMES[1]}.yaml")
    cfg.SOLVER.IMS_PER_BATCH = 8
    scale_to_batch_size(cfg, from_yaml.SCHEDULE)
    train, solver = lazy.train, cfg.SOLVER
    assert (train.max_iter, train.checkpointer.period, train.eval_period) == (
        solver.MAX_ITER,
        solver.CHECKPOINT_PERIOD,
        cfg.TEST.EVAL_PERIOD,
    )
    assert lazy.optimizer.lr == solver.BASE_LR == 1.25e-5
    assert train.reference_batch_size == 8
    factor = instantiate(lazy.lr_multiplier)
    for iteration, rate in {0: 0.01, solver.WARMUP_ITERS: 1.0, solver.STEPS[0]: 0.1, solver.STEPS[1]: 0.01}.items():
        assert factor(iteration / solver.MAX_ITER) == pytest.approx(rate, rel=1e-3), iteration


@pytest.mark.parametrize(
    ("max_iter", "batch", "given", "expected"),
    [(263880, 16, 0, 73300), (10000, 16, 0, 2778), (10000, 8, 0, 5556), (10000, 16, 500, 500), (10000, 8, 500, 1000)],
)
def test_the_temperature_follows_the_length_of_the_training_as_in_yaml_configs(max_iter, batch, given, expected):
    temperature = "model.proposal_generator.temperature.num_iters"
    options = {"train.max_iter": max_iter, "dataloader.train.total_batch_size": batch, temperature: given}
    lazy = small_lazy_cfg(NAMES[1], **options)
    from_lazy.scale_schedule(lazy)
    cfg = model_zoo.get_config(f"coco/{NAMES[1]}.yaml")
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS = max_iter, batch, given
    scale_to_batch_size(cfg, from_yaml.SCHEDULE)
    levels = {f"p{level}": ShapeSpec(channels=256, stride=2**level) for level in range(2, 6)}
    of_yaml = DynamicProposalGenerator.from_config(cfg, levels)["temperature"]
    assert instantiate(lazy.model.proposal_generator.temperature) == of_yaml == TemperatureSchedule(30, 1, expected)


def test_empty_lists_of_test_sets_and_evaluators_are_no_evaluation():
    cfg = small_lazy_cfg(NAMES[0])
    cfg.dataloader.test, cfg.dataloader.evaluator = [], []
    assert from_lazy.test(cfg, torch.nn.Identity()) == {}


def test_parts_that_do_not_fit_are_named(tmp_path):
    args = argument_parser().parse_args(
        [
            "--config-file",
            model_zoo.get_config_file(f"lazy/{NAMES[0]}.py"),
            "--eval-only",
            f"train.output_dir={tmp_path}",
        ]
    )
    args.opts += ["+model.head.stages.colour=red", "train.device=cpu"]
    with pytest.raises(ConfigError, match=r"^model of the config cannot be built: .*colour"):
        engine_main.main(args)
    args.opts.append("optimizer=null")
    with pytest.raises(ConfigError, match=r"\.py has no optimizer: add it"):
        engine_main.main(args)
