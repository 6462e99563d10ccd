"""A batch in parts teaches what the batch at once teaches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from ranks import run_ranks
from small_runs import use_resnet_18, use_slim_resnet_50

from dynamic_sparse_rcnn.engine.parallel import distribute
from dynamic_sparse_rcnn.engine.solver import build_optimizer
from dynamic_sparse_rcnn.engine.step import StepTrainer, split_batch

MATCHING = [("HungarianMatcher", None), ("OptimalTransportMatcher", "positives"), ("OptimalTransportMatcher", "num_gt")]


@pytest.fixture
def cfg(tiny_cfg):
    """With the matcher whose counts depend on the predictions."""
    use_slim_resnet_50(tiny_cfg).MODEL.SparseRCNN.MATCHER = "OptimalTransportMatcher"
    # Batch statistics would be each part's own.
    tiny_cfg.MODEL.RESNETS.NORM = "FrozenBN"
    # Plain steps: AdamW's have the same size whatever the gradient's.
    tiny_cfg.SOLVER.OPTIMIZER, tiny_cfg.SOLVER.BASE_LR, tiny_cfg.SOLVER.MOMENTUM = "SGD", 0.1, 0.0
    return tiny_cfg


def run(trainer: SimpleTrainer, iteration: int = 0) -> EventStorage:
    with EventStorage(iteration) as storage:
        trainer.iter = 0
        trainer.run_step()
    return storage


def assert_same(found: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Equal but for float32: convolutions round differently for another batch size, ReLUs then flip here and there.

    (In float64 the largest difference is 1e-15 of the gradient.)
    """
    assert (found - expected).norm() <= 0.01 * expected.norm() + 1e-7, name


def assert_same_step(model, other) -> None:
    others = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert_same(parameter.grad, others[name].grad, name)
        torch.testing.assert_close(parameter, others[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("matcher", "normalizer"), MATCHING)
@pytest.mark.parametrize(("counts", "steps"), [([5, 1, 2, 0], 3), ([0, 0, 0, 1], 2), ([0, 0, 0, 0], 4)])
def test_gradients_step_and_log_are_those_of_the_batch_at_once(cfg, make_inputs, matcher, normalizer, counts, steps):
    cfg.MODEL.SparseRCNN.MATCHER, cfg.MODEL.SparseRCNN.DLA.NORMALIZER = matcher, normalizer
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = "full_model", 0.5
    at_once = build_model(cfg)
    in_parts = copy.deepcopy(at_once)
    batch = make_inputs(counts)  # of mixed sizes: padding matters
    expected = run(SimpleTrainer(at_once, [batch], build_optimizer(cfg, at_once)))
    found = run(StepTrainer(in_parts, [batch], build_optimizer(cfg, in_parts), steps=steps))
    assert_same_step(in_parts, at_once)
    for name, (value, _) in expected.latest().items():
        if "loss" in name:
            assert found.latest()[name][0] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    assert set(expected.latest()) == set(found.latest())


def test_dynamic_proposals_are_mixed_at_the_temperature_of_the_iteration_in_parts_too(cfg, make_inputs):
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS = "DynamicSparseRCNN", 10
    at_once = build_model(cfg)
    in_parts = copy.deepcopy(at_once)
    batch = make_inputs([5, 1, 2, 0])
    expected = run(SimpleTrainer(at_once, [batch], build_optimizer(cfg, at_once)), iteration=5)
    found = run(StepTrainer(in_parts, [batch], build_optimizer(cfg, in_parts), steps=2), iteration=5)
    assert_same_step(in_parts, at_once)
    assert in_parts.proposal_generator.router is not None
    assert found.latest()["dpg/temperature"] == expected.latest()["dpg/temperature"] == (15.5, 5)


@pytest.mark.parametrize("scaled", [False, True])
def test_mixed_precision_and_its_scaler_change_the_rounding_alone(cfg, make_inputs, scaled):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = "full_model", 0.5
    model = build_model(use_resnet_18(cfg))
    other = copy.deepcopy(model)
    batch = make_inputs([5, 1, 2, 0])
    dtype = None if scaled else torch.bfloat16
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    trainer = StepTrainer(model, [batch], build_optimizer(cfg, model), steps=2, dtype=dtype, grad_scaler=scaler)
    run(trainer)
    run(StepTrainer(other, [batch], build_optimizer(cfg, other), steps=2))
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    expected = torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None])
    if scaled:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    else:
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.9
    restored = StepTrainer(
        other, [batch], build_optimizer(cfg, other), steps=2, grad_scaler=scaler and torch.amp.GradScaler("cpu")
    )
    restored.load_state_dict(trainer.state_dict())
    if scaled:
        assert restored.grad_scaler.get_scale() == scaler.get_scale()


def learn_on_a_rank(cfg, inputs: list[list[dict]], folder: Path) -> None:
    rank = comm.get_rank()
    torch.manual_seed(0)
    model: Any = distribute(build_model(cfg), broadcast_buffers=False)
    run(StepTrainer(model, [inputs[rank]], build_optimizer(cfg, model), steps=2))
    if rank == 0:
        torch.save({name: p.grad for name, p in model.module.named_parameters()}, folder / "gradients.pth")


def test_two_ranks_with_two_parts_each_learn_what_one_process_learns_at_once(cfg, make_inputs, tmp_path):
    inputs = make_inputs([5, 1, 2, 0], [(64, 96)] * 4)
    run_ranks(2, learn_on_a_rank, cfg, [inputs[:2], inputs[2:]], tmp_path)
    torch.manual_seed(0)
    model = build_model(cfg)
    run(SimpleTrainer(model, [inputs], build_optimizer(cfg, model)))
    found = torch.load(tmp_path / "gradients.pth")
    for name, parameter in model.named_parameters():
        assert_same(found[name], parameter.grad, name)


def test_batch_statistics_are_remembered_once_a_part(cfg, make_inputs):
    cfg.MODEL.RESNETS.NORM = "BN"
    model = build_model(cfg)
    other = copy.deepcopy(model)
    batch = make_inputs([2, 1], [(64, 96)] * 2)
    run(StepTrainer(model, [batch], build_optimizer(cfg, model), steps=2))
    for one in batch:
        other([one])
    for (name, buffer), expected in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)


def test_parts_have_all_images_in_order_and_nearly_the_same_size():
    batch = [{"file_name": str(i)} for i in range(10)]
    parts = split_batch(batch, 4)
    assert [image for part in parts for image in part] == batch
    assert sorted(map(len, parts)) == [2, 2, 3, 3]
    for steps in (0, 11):
        with pytest.raises(ValueError, match=rf"ACCUMULATE_STEPS is {steps}, but .* has 10 image\(s\)"):
            split_batch(batch, steps)


def test_a_model_that_cannot_count_is_an_error():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"SOLVER\.ACCUMULATE_STEPS is 2.*Linear has none\. Set it to 1"):
        StepTrainer(model, [], torch.optim.SGD(model.parameters(), 0.1), steps=2)
