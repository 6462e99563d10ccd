"""Batches of a training depend on the seed and the iteration alone, and are detectron2's own."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler

from dynamic_sparse_rcnn.data import loader
from dynamic_sparse_rcnn.data.loader import TrainLoader, build_train_loader
from dynamic_sparse_rcnn.data.seeding import seeded, shared_seed

# Three of four images are wider than high.
DICTS = [{"number": i, "width": 10, "height": 9 + i % 4 // 3 * 5} for i in range(11)]


def draw(record: dict) -> dict:
    """A mapper with all kinds of random numbers."""
    return record | {"drawn": (random.random(), float(np.random.rand()), torch.rand(1).item())}


def make_loader(**options) -> TrainLoader:
    return TrainLoader(DICTS, draw, **{"total_batch_size": 3, "seed": 5} | options)


def take(loader, count: int) -> list:
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("grouping", [False, True])
def test_batches_are_those_of_detectron2(grouping):
    sampler = TrainingSampler(len(DICTS), seed=5)
    theirs = build_detection_train_loader(
        DICTS, mapper=dict, sampler=sampler, total_batch_size=3, aspect_ratio_grouping=grouping
    )
    ours = TrainLoader(DICTS, dict, total_batch_size=3, seed=5, aspect_ratio_grouping=grouping)
    assert take(ours, 20) == take(theirs, 20)


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_can_start_at_any_iteration_with_any_number_of_workers(grouping, workers):
    expected = take(make_loader(aspect_ratio_grouping=grouping), 9)
    later = make_loader(aspect_ratio_grouping=grouping, num_workers=workers)
    later.start_iter = 4
    assert take(later, 5) == expected[4:]


def test_an_image_is_augmented_anew_each_time():
    drawn = [image["drawn"] for batch in take(make_loader(), 20) for image in batch]
    assert len(set(drawn)) == len(drawn) == 60
    assert take(make_loader(seed=6), 1)[0] != take(make_loader(seed=5), 1)[0]


def test_loading_leaves_the_random_numbers_of_the_process_alone():
    generators = (random.getstate, lambda: np.random.get_state()[1].tolist(), lambda: torch.get_rng_state().tolist())
    before = [state() for state in generators]
    take(make_loader(), 3)
    assert [state() for state in generators] == before


def test_seeded_numbers_are_the_same_and_what_follows_is_as_if_there_were_none():
    def numbers() -> tuple:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    with seeded(3):
        first = numbers()
    state = random.getstate()
    with seeded(3):
        assert numbers() == first
    assert random.getstate() == state


def test_a_config_without_a_seed_gets_one():
    assert shared_seed(7) == 7
    assert shared_seed(-1) >= 0


def test_images_without_a_size_cannot_be_grouped():
    records = [{"file_name": "a.jpg", "width": 10, "height": 9}, {"file_name": "b.jpg", "width": 10}]
    with pytest.raises(ValueError, match=r"width and height of b\.jpg: .*ASPECT_RATIO_GROUPING False"):
        TrainLoader(records, dict, total_batch_size=1, seed=0)
    assert take(TrainLoader(records, dict, total_batch_size=2, seed=0, aspect_ratio_grouping=False), 3)


def test_a_random_subset_is_the_same_each_time_and_without_end(tiny_cfg):
    tiny_cfg.SEED, tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.DATALOADER.NUM_WORKERS = 3, 2, 0
    tiny_cfg.DATALOADER.SAMPLER_TRAIN, tiny_cfg.DATALOADER.RANDOM_SUBSET_RATIO = "RandomSubsetTrainingSampler", 0.5
    batches = take(build_train_loader(tiny_cfg, DICTS, dict), 40)
    assert len({image["number"] for batch in batches for image in batch}) == len(DICTS) // 2
    assert batches == take(build_train_loader(tiny_cfg, DICTS, dict), 40)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_images_are_pinned_for_a_gpu_alone(tiny_cfg, monkeypatch, device, pinned):
    tiny_cfg.SEED, tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.MODEL.DEVICE = 3, 2, device
    given = []
    monkeypatch.setattr(loader, "DataLoader", lambda *_, **options: given.append(options["pin_memory"]) or [[]])
    take(build_train_loader(tiny_cfg, DICTS, dict), 1)
    assert given == [pinned]


def test_the_configs_sampler_decides(tiny_cfg):
    tiny_cfg.SEED, tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.DATALOADER.NUM_WORKERS = 3, 2, 0
    rare = {"number": 11, "width": 10, "height": 9, "annotations": [{"category_id": 1}]}
    dicts = [*(record | {"annotations": [{"category_id": 0}]} for record in DICTS), rare]
    tiny_cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    tiny_cfg.DATALOADER.REPEAT_THRESHOLD = 0.75  # repeats it three times
    batches = take(build_train_loader(tiny_cfg, dicts, dict), 70)
    numbers = [image["number"] for batch in batches for image in batch]
    assert 2 * numbers.count(0) < numbers.count(11) < 4 * numbers.count(0)
    assert batches == take(build_train_loader(tiny_cfg, dicts, dict), 70)
