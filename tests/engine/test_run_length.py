"""The length of a training in epochs and minutes, and images that are small enough for it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from fvcore.common.param_scheduler import MultiStepParamScheduler
from small_runs import CONFIG, TINY

from dynamic_sparse_rcnn.config_reading import read_config
from dynamic_sparse_rcnn.engine import run_length
from dynamic_sparse_rcnn.engine.run_length import Timing
from dynamic_sparse_rcnn.engine.small_data import Choice, as_options
from dynamic_sparse_rcnn.engine.step import StepTrainer

IMAGES = 6  # of the set of shapes


def values(choices: list[Choice]) -> dict[str, object]:
    return {choice.key: choice.value for choice in choices}


@pytest.fixture
def cfg(shapes) -> CfgNode:
    return read_config(CONFIG, [*TINY, "DATASETS.TRAIN", f"('{shapes}',)", "DATASETS.TEST", f"('{shapes}',)"])


@pytest.fixture
def timed(monkeypatch):
    """Sets what is measured, and gives the configs that were measured."""
    measured: list[CfgNode] = []

    def set_timing(*timings: Timing) -> list[CfgNode]:
        def measure(cfg: CfgNode, processes: int) -> Timing:
            measured.append(cfg)
            return timings[min(len(measured), len(timings)) - 1]

        monkeypatch.setattr(run_length, "measure", measure)
        monkeypatch.setattr(time, "perf_counter", lambda: 1000.0)
        return measured

    return set_timing


@pytest.mark.parametrize(("epochs", "iterations"), [(1, 3), (10, 30), (0.5, 2), (0.01, 1)])
def test_epochs_are_iterations_over_all_images(cfg, epochs, iterations):
    chosen = values(run_length.choose_length(cfg, epochs=epochs))  # batches of two images
    assert chosen["SOLVER.MAX_ITER"] == iterations
    assert chosen["SOLVER.REFERENCE_BATCH_SIZE"] == 2


def test_the_schedule_follows_from_a_number_of_iterations_alone(cfg, monkeypatch):
    monkeypatch.setattr(run_length, "count_images", lambda names: pytest.fail("images are counted"))
    chosen = values(run_length.choose_length(cfg, iterations=1000))
    assert (chosen["SOLVER.MAX_ITER"], chosen["SOLVER.STEPS"], chosen["TEST.EVAL_PERIOD"]) == (1000, (800,), 250)
    assert chosen["SOLVER.REFERENCE_BATCH_SIZE"] == 2


def test_minutes_are_iterations_and_evaluations(cfg, timed):
    timed(Timing(iteration=0.5, image=1.0))
    # Of 600 seconds a fifth is enough for four evaluations of six seconds; 95 % of the rest are for iterations.
    chosen = values(run_length.choose_length(cfg, minutes=10))
    assert chosen["SOLVER.MAX_ITER"] == int(0.95 * (600 - 4 * IMAGES) / 0.5)
    assert chosen["TEST.EVAL_PERIOD"] == -(-chosen["SOLVER.MAX_ITER"] // 4)
    # What has passed already counts.
    chosen = values(run_length.choose_length(cfg, minutes=10, start=900.0))
    assert chosen["SOLVER.MAX_ITER"] == int(0.95 * (500 - 4 * IMAGES) / 0.5)


def test_slow_evaluations_are_fewer_but_there_is_one(cfg, timed):
    timed(Timing(iteration=0.1, image=10.0))
    chosen = values(run_length.choose_length(cfg, minutes=10))
    assert chosen["TEST.EVAL_PERIOD"] == -(-chosen["SOLVER.MAX_ITER"] // 2)
    chosen = values(run_length.choose_length(cfg, minutes=2))
    assert chosen["TEST.EVAL_PERIOD"] == chosen["SOLVER.MAX_ITER"] == int(0.95 * (120 - 10 * IMAGES) / 0.1)


def test_without_test_sets_all_time_is_for_iterations(cfg, timed):
    timed(Timing(iteration=1.0, image=0.0))
    cfg.DATASETS.TEST = ()
    assert values(run_length.choose_length(cfg, minutes=1))["SOLVER.MAX_ITER"] == 57


def test_the_schedule_of_a_config_for_another_batch_is_written_for_the_one_in_use(cfg):
    cfg.SOLVER.REFERENCE_BATCH_SIZE, cfg.SOLVER.BASE_LR = 8, 0.4
    chosen = values(run_length.choose_length(cfg, epochs=2))
    assert (chosen["SOLVER.BASE_LR"], chosen["SOLVER.REFERENCE_BATCH_SIZE"]) == (pytest.approx(0.1), 2)
    assert cfg.SOLVER.BASE_LR == 0.4


@pytest.mark.parametrize("iterations", [0, 1, 7, 480, 10_000])
@pytest.mark.parametrize("evaluations", [1, 4])
def test_every_length_has_a_schedule(iterations, evaluations):
    chosen = values(run_length.choose_schedule(iterations, evaluations, 8, 5e-4, "because"))
    length, steps = max(1, iterations), chosen["SOLVER.STEPS"]
    assert chosen["SOLVER.MAX_ITER"] == length
    # fvcore refuses milestones that do not fit.
    MultiStepParamScheduler([1, 0.1][: 1 + len(steps)], milestones=list(steps), num_updates=length)
    assert all(1 <= step < length for step in steps) and len(steps) == (length > 1)
    assert 1 <= chosen["SOLVER.WARMUP_ITERS"] <= max(1, length // 10)
    assert 1 <= -(-length // chosen["TEST.EVAL_PERIOD"]) <= evaluations


@pytest.fixture
def small_objects(tmp_path) -> Iterator[str]:
    """The name of a set of large images with small objects. There are no image files."""
    content = {
        "categories": [{"id": 1, "name": "thing"}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, 11)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [9, 9, 8, 8], "iscrowd": 0, "area": 64}
            for i in range(1, 11)
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    name = f"coco:{tmp_path}/data.json:{tmp_path}"
    yield name
    for registered in (name, f"{name}:0-80%", f"{name}:80-100%"):
        if registered in DatasetCatalog:
            DatasetCatalog.remove(registered)
            MetadataCatalog.remove(registered)


def reader(name: str) -> Callable[[Sequence[str]], CfgNode]:
    return lambda options: read_config(CONFIG, ["DATASETS.TRAIN", f"('{name}',)", "MODEL.DEVICE", "cpu", *options])


@pytest.mark.parametrize(
    ("seconds", "side", "measurements"),
    # 570, 285 and 5 iterations; sqrt(285 / 500) * 320 is 241.
    [(1.0, 320, 1), (2.0, 224, 2), (100.0, 160, 2)],
)
def test_small_objects_get_the_image_size_that_time_allows(small_objects, timed, seconds, side, measurements):
    measured = timed(Timing(seconds, 0.0))
    read = reader(small_objects)
    choices = run_length.choose_training(read, [small_objects], [], minutes=10)
    assert values(choices)["INPUT.MIN_SIZE_TEST"] == side
    assert [cfg.INPUT.MIN_SIZE_TEST for cfg in measured] == [320, side][:measurements]
    cfg = read(as_options(choices))
    assert side == cfg.INPUT.MIN_SIZE_TEST
    assert cfg.DATASETS.TRAIN[0].endswith(":0-80%")


def test_a_training_of_a_given_length_is_not_timed(small_objects, timed):
    measured, read = timed(Timing(1.0, 1.0)), reader(small_objects)
    # Eight of the ten images, in batches of eight.
    choices = run_length.choose_training(read, [small_objects], [], epochs=6)
    assert values(choices)["SOLVER.MAX_ITER"] == 6
    assert values(run_length.choose_training(read, [small_objects], [], iterations=5))["SOLVER.MAX_ITER"] == 5
    assert not measured


@pytest.mark.parametrize("tested", [True, False])
def test_what_is_timed_are_steps_and_inference_of_the_config(cfg, monkeypatch, caplog, tested):
    steps = []
    step = StepTrainer.run_step
    monkeypatch.setattr(StepTrainer, "run_step", lambda self: (steps.append(self.dtype), step(self)))
    if not tested:
        cfg.DATASETS.TEST = ()
    with caplog.at_level(logging.INFO):
        run_length.choose_length(cfg, minutes=1)
    assert len(steps) == 11
    assert not caplog.records  # the run itself will say all of it
    assert logging.getLogger("detectron2").isEnabledFor(logging.WARNING)


def test_seconds_are_those_of_an_iteration_and_of_an_image(cfg, monkeypatch):
    from dynamic_sparse_rcnn.engine.from_yaml import prepare_config

    prepare_config(cfg, is_train=True)
    clock = iter(range(10_000))
    monkeypatch.setattr(StepTrainer, "run_step", lambda self: [next(clock) for _ in range(4)])
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert run_length.measure(cfg) == Timing(iteration=5.0, image=1.0)
