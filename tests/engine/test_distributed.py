"""Several processes learn what one process with all of their images learns, and find what it finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from ranks import run_ranks

from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine.from_yaml import prepare_config
from dynamic_sparse_rcnn.engine.parallel import distribute, has_idle_levels
from dynamic_sparse_rcnn.engine.trainer import Trainer


def learn_on_a_rank(cfg: CfgNode, inputs: list[dict], folder: Path) -> None:
    rank, share = comm.get_rank(), len(inputs) // comm.get_world_size()
    torch.manual_seed(rank)  # DistributedDataParallel gives all ranks the first one's weights
    model: Any = distribute(build_model(cfg), broadcast_buffers=False)
    losses = model(inputs[rank * share : (rank + 1) * share])
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters()} if rank == 0 else {}
    torch.save(({name: loss.detach() for name, loss in losses.items()}, gradients), folder / f"{rank}.pth")


@pytest.mark.parametrize("counts", [[5, 1, 2, 0], [3, 2, 0, 0]], ids=["mixed", "a_rank_with_empty_images_alone"])
@pytest.mark.parametrize("generator", ["LearnedProposalGenerator", "DynamicProposalGenerator"])
@pytest.mark.parametrize("matcher", ["HungarianMatcher", "OptimalTransportMatcher"])
def test_losses_and_gradients_of_ranks_are_those_of_one_process(
    tiny_dynamic_cfg, make_inputs, tmp_path, matcher, generator, counts
):
    cfg = tiny_dynamic_cfg
    cfg.MODEL.SparseRCNN.MATCHER = matcher
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = generator
    # Batch statistics would be each rank's own, as would be the padding of its images.
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    inputs = make_inputs(counts, [(64, 96)] * 4)
    torch.manual_seed(0)
    model = build_model(cfg)
    expected = model(inputs)
    sum(expected.values()).backward()
    whole = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    for world_size in (2, 4):
        run_ranks(world_size, learn_on_a_rank, cfg, inputs, tmp_path)
        results = [torch.load(tmp_path / f"{rank}.pth") for rank in range(world_size)]
        for name, loss in expected.items():
            mean = torch.stack([losses[name] for losses, _ in results]).mean()
            torch.testing.assert_close(mean, loss.detach(), rtol=1e-4, atol=1e-6, msg=name)
        for name, parameter in model.named_parameters():
            difference = (results[0][1][name] - parameter.grad).norm()
            # Where large terms cancel, what float32 rounds off is small beside the whole gradient alone.
            assert difference <= 1e-4 * parameter.grad.norm() + 1e-6 * whole, (world_size, name)


@pytest.fixture
def shapes_cfg(tiny_dynamic_cfg, tmp_path) -> CfgNode:
    """A detector of shapes, of which there are five images of different sizes, and two iterations."""
    cfg = tiny_dynamic_cfg
    paths = generate_shapes(tmp_path, "val", ShapesConfig(num_images=5, image_size=64))
    name = f"coco:{paths.json_path}:{paths.image_folder}"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.MODEL.SparseRCNN.NUM_CLASSES = 5
    cfg.TEST.VOC_METRIC = "voc2012"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SEED = 2, 2, (), 1
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    return cfg


def evaluate_on_a_rank(cfg: CfgNode, results: Path) -> None:
    # As the statistics of batches, which each rank has of its own after a training: only the first rank's count.
    torch.manual_seed(0)
    model = build_model(cfg)
    for buffer in model.buffers():
        buffer += comm.get_rank()
    found = Trainer.test(cfg, distribute(model, broadcast_buffers=False))
    assert bool(found) == comm.is_main_process()
    if found:
        results.write_text(json.dumps(found))


@pytest.mark.parametrize("world_size", [2, 4])
def test_evaluation_on_ranks_finds_what_one_process_finds_in_each_image_once(shapes_cfg, tmp_path, world_size):
    together, alone = tmp_path / "together.json", tmp_path / "alone.json"
    detections = tmp_path / "run/inference/coco_instances_results.json"
    run_ranks(world_size, evaluate_on_a_rank, shapes_cfg, together)
    found = json.loads(detections.read_text())
    evaluate_on_a_rank(shapes_cfg, alone)
    expected = json.loads(detections.read_text())
    assert len({x["image_id"] for x in found}) == 5
    assert len(found) == len(expected)
    key = ["image_id", "category_id", "bbox", "score"]
    assert [[x[k] for k in key] for x in found] == [[x[k] for k in key] for x in expected]
    results = json.loads(together.read_text())
    assert results.keys() == {"proposals", "bbox", "voc2012"}
    for task, metrics in json.loads(alone.read_text()).items():
        assert results[task] == pytest.approx(metrics, nan_ok=True), task


def train_on_a_rank(cfg: CfgNode, results: Path) -> None:
    cfg = cfg.clone()
    prepare_config(cfg, is_train=True)
    torch.manual_seed(0)
    trainer: Any = Trainer(cfg)
    trainer.train()
    if comm.is_main_process():
        latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
        torch.save((latest, getattr(trainer.model, "module", trainer.model).state_dict()), results)


def test_a_run_of_ranks_is_the_run_of_one_process(shapes_cfg, tmp_path):
    """The same batches, schedule and steps, a batch in parts or not: as far as rounding goes."""
    cfg = shapes_cfg
    cfg.DATASETS.TEST, cfg.DATALOADER.ASPECT_RATIO_GROUPING = (), False
    cfg.MODEL.RESNETS.NORM, cfg.INPUT.RANDOM_FLIP = "FrozenBN", "none"
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_BATCH_SIZE, cfg.SOLVER.MAX_ITER = 4, 8, 1
    # Plain steps: AdamW's have the same size whatever the gradient's.
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.MOMENTUM, cfg.SOLVER.BASE_LR = "SGD", 0.0, 0.02
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 1, 0.5
    train_on_a_rank(cfg, tmp_path / "one.pth")
    expected, weights = torch.load(tmp_path / "one.pth")
    for steps in (1, 2):
        cfg.SOLVER.ACCUMULATE_STEPS = steps
        run_ranks(2, train_on_a_rank, cfg, tmp_path / "two.pth")
        found, moved = torch.load(tmp_path / "two.pth")
        assert found["lr"] == expected["lr"] <= 0.01  # of twice the iterations, which the half batch has
        for name in ("total_loss", "loss_ce", "loss_giou_0", "dpg/temperature"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3), name
        for name, value in moved.items():
            torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("steps", [1, 2])
def test_ranks_in_mixed_precision_take_the_step_of_one_process(shapes_cfg, tmp_path, steps):
    """One step of all weights together: bfloat16 rounds single ones, and what follows from them, too coarsely."""
    cfg = shapes_cfg
    cfg.DATASETS.TEST, cfg.DATALOADER.ASPECT_RATIO_GROUPING = (), False
    cfg.MODEL.RESNETS.NORM, cfg.INPUT.RANDOM_FLIP, cfg.SOLVER.AMP.ENABLED = "FrozenBN", "none", True
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_BATCH_SIZE, cfg.SOLVER.MAX_ITER = 4, 0, 1
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.MOMENTUM, cfg.SOLVER.BASE_LR = "SGD", 0.0, 0.01
    torch.manual_seed(0)
    start = build_model(cfg).state_dict()
    train_on_a_rank(cfg, tmp_path / "one.pth")
    cfg.SOLVER.ACCUMULATE_STEPS = steps
    run_ranks(2, train_on_a_rank, cfg, tmp_path / "two.pth")
    (expected, weights), (found, moved) = (torch.load(tmp_path / f"{name}.pth") for name in ("one", "two"))
    assert found["total_loss"] == pytest.approx(expected["total_loss"], rel=1e-3)
    step, other = (torch.cat([(x[name] - start[name]).flatten() for name in start]) for x in (weights, moved))
    assert (other - step).norm() < 0.02 * step.norm()


def test_levels_that_nothing_looks_at_are_known(tiny_dynamic_cfg):
    assert not has_idle_levels(build_model(tiny_dynamic_cfg))  # p6 has no layers
    assert not has_idle_levels(torch.nn.Linear(1, 1))
    tiny_dynamic_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p4", "p5"]
    assert has_idle_levels(build_model(tiny_dynamic_cfg))
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    assert not has_idle_levels(build_model(tiny_dynamic_cfg))
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.NUM_EXPERTS = 1
    assert has_idle_levels(build_model(tiny_dynamic_cfg))


@pytest.mark.parametrize("steps", [1, 2])
def test_ranks_train_a_detector_that_looks_at_some_levels_alone(shapes_cfg, tmp_path, steps):
    cfg = shapes_cfg
    cfg.DATASETS.TEST, cfg.MODEL.ROI_HEADS.IN_FEATURES = (), ["p2", "p3"]
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE_STEPS, cfg.SOLVER.REFERENCE_BATCH_SIZE = 4, steps, 0
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_FACTOR = 1e-3, 1.0
    run_ranks(2, train_on_a_rank, cfg, tmp_path / "two.pth")
    _, weights = torch.load(tmp_path / "two.pth")
    torch.manual_seed(0)
    start = build_model(cfg).state_dict()
    moved = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert {"backbone.fpn_output2.weight", "backbone.fpn_output3.weight", "backbone.fpn_lateral5.weight"} <= moved
    assert not {"backbone.fpn_output4.weight", "backbone.fpn_output5.weight"} & moved
