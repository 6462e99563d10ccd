"""The temperature of the softmax over experts: annealed in training, by the iteration alone; at its end elsewhere."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from small_generators import IMAGES, SIZES, make_features, make_generator

from dynamic_sparse_rcnn import TemperatureSchedule


def test_the_temperature_falls_linearly_and_stays():
    schedule = TemperatureSchedule(30.0, 1.0, 100)
    assert [schedule(i) for i in (0, 50, 100, 5000)] == pytest.approx([30.0, 15.5, 1.0, 1.0])
    assert TemperatureSchedule(30.0, 2.0, 0)(0) == 2.0


def test_the_schedule_covers_ten_of_36_epochs_unless_the_config_says_how_much(tiny_dynamic_cfg):
    tiny_dynamic_cfg.SOLVER.MAX_ITER = 263880
    schedule = build_model(tiny_dynamic_cfg).proposal_generator.temperature
    assert schedule == TemperatureSchedule(30.0, 1.0, 73300)
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS = 70
    assert build_model(tiny_dynamic_cfg).proposal_generator.temperature.num_iters == 70


def test_training_is_annealed_by_the_iteration_and_logged():
    generator = make_generator(temperature=TemperatureSchedule(30.0, 1.0, 100))
    features = make_features()
    logits = generator.router(list(features.values()), SIZES)
    for iteration, temperature in ((0, 30.0), (50, 15.5), (200, 1.0)):
        with EventStorage(iteration) as storage:
            proposals, _ = generator(IMAGES, features)
        assert storage.latest()["dpg/temperature"] == (temperature, iteration)
        weights = torch.stack([x.expert_weights for x in proposals])
        torch.testing.assert_close(weights, (logits / temperature).softmax(1).transpose(1, 2))


def test_inference_is_at_the_last_temperature_inside_a_training_loop_and_outside():
    generator = make_generator(temperature=TemperatureSchedule(30.0, 1.0, 100)).eval()
    features = make_features()
    expected = generator.router(list(features.values()), SIZES).softmax(1).transpose(1, 2)
    outside, _ = generator(IMAGES, features)
    with EventStorage(3) as storage:
        generator.train()(IMAGES, features)
        inside, _ = generator.eval()(IMAGES, features)
    assert storage.latest()["dpg/temperature"][1] == 3
    for proposals in (outside, inside):
        assert torch.equal(torch.stack([x.expert_weights for x in proposals]), expected)


def test_training_without_a_loop_says_that_it_is_not_annealed(caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    generator = make_generator(temperature=TemperatureSchedule(30.0, 1.0, 100))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            generator(IMAGES, make_features())
    assert caplog.text.count("not annealed") == 1


def test_one_expert_has_no_temperature_to_log_or_to_warn_about(caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    generator = make_generator(1, temperature=TemperatureSchedule(30.0, 1.0, 100))
    generator(IMAGES, {})
    with EventStorage() as storage:
        generator(IMAGES, {})
    assert not caplog.records and not storage.latest()
