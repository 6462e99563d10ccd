"""What is chosen for a training on unknown data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from dynamic_sparse_rcnn.cli.train import DEFAULT_CONFIG
from dynamic_sparse_rcnn.config_reading import read_config
from dynamic_sparse_rcnn.data.datasets import register_dataset
from dynamic_sparse_rcnn.engine import small_data
from dynamic_sparse_rcnn.engine.small_data import Choice, DataSummary
from dynamic_sparse_rcnn.model_zoo import get_config_file


def record(width: int, height: int, sides: list[int], crowd: int = 0) -> dict:
    """An image with square objects, and one more of a crowd."""
    boxes = [*((side, 0) for side in sides), (height, crowd)] if crowd else [(side, 0) for side in sides]
    annotations = [
        {"bbox": [0, 0, side, side], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": flag}
        for side, flag in boxes
    ]
    return {"file_name": "x.jpg", "image_id": 1, "width": width, "height": height, "annotations": annotations}


def summary_of(most_boxes: int = 4, object_share: float = 0.2, short_side: float = 480, num_images: int = 100):
    return DataSummary(num_images, most_boxes, object_share, short_side)


def values(choices: list[Choice]) -> dict[str, object]:
    return {choice.key: choice.value for choice in choices}


def test_the_summary_measures_what_can_be_learned():
    records = [record(400, 200, [20, 60, 100], crowd=1), record(100, 100, [50]), record(300, 200, [0])]
    summary = DataSummary.of(records)
    # Shares of the short side: 0.1, 0.3, 0.5, and 0.5; the crowd and the box without area do not count.
    assert (summary.num_images, summary.most_boxes) == (3, 3)
    assert summary.object_share == pytest.approx(0.4)
    assert summary.short_side == 200


def test_data_without_boxes_are_refused():
    with pytest.raises(ValueError, match="2 images have no usable box"):
        DataSummary.of([record(10, 10, []), record(10, 10, [0])])


@pytest.mark.parametrize(("most", "proposals"), [(1, 30), (15, 30), (16, 40), (56, 120), (1000, 300)])
def test_proposals_follow_from_the_fullest_image(most, proposals):
    assert small_data.choose_proposals(summary_of(most_boxes=most)).value == proposals


@pytest.mark.parametrize(
    ("share", "short_side", "side"),
    [
        (0.5, 480, 160),  # large objects: the smallest size
        (0.16, 480, 224),  # 200 and more
        (0.05, 480, 320),  # small ones: the largest
        (0.05, 250, 256),  # but images are not enlarged, or only to a multiple of 32
        (0.05, 64, 64),  # or not above that of the images
    ],
)
def test_the_image_size_follows_from_that_of_the_objects(share, short_side, side):
    chosen = values(small_data.choose_image_size(summary_of(object_share=share, short_side=short_side)))
    assert chosen["INPUT.MIN_SIZE_TEST"] == side
    assert chosen["INPUT.MAX_SIZE_TEST"] == 1.5 * side
    sides = chosen["INPUT.MIN_SIZE_TRAIN"]
    assert len(sides) == 5
    assert sides[2] == side
    assert min(sides) < side < max(sides)
    assert chosen["INPUT.MAX_SIZE_TRAIN"] == 1.5 * max(sides)


@pytest.mark.parametrize(("device", "images", "batch"), [("cpu", 500, 8), ("cuda", 500, 16), ("cuda:1", 40, 8)])
def test_the_batch_follows_from_device_and_data(device, images, batch):
    assert small_data.choose_batch(summary_of(num_images=images), device).value == batch


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6])
def test_processes_share_batch_cores_and_memory(monkeypatch, data, processes):
    name = f"coco:{data}/data.json:{data}/images"
    monkeypatch.setattr(small_data.os, "sched_getaffinity", lambda pid: range(16), raising=False)
    shares = []
    cache = small_data.Choice("DATALOADER.CACHE_MEGABYTES", 0, "")
    monkeypatch.setattr(small_data, "choose_cache", lambda records, side, workers: shares.append(workers) or cache)
    chosen = values(small_data.choose_settings([name], [], "cpu", processes=processes))
    batch, workers = chosen["SOLVER.IMS_PER_BATCH"], chosen["DATALOADER.NUM_WORKERS"]
    assert batch % processes == 0 and 8 <= batch < 8 + processes
    assert 2 * workers * processes <= 16 and (workers == 4 or 2 * (workers + 1) * processes > 16)
    assert shares == [workers * processes]


@pytest.mark.parametrize(
    ("size", "free", "megabytes"),
    [
        ((640, 480), 2**40, 0),  # decoded in no time
        ((4000, 3000), 2**40, 22),  # ten of them, a quarter as wide and high: 10 * 1000 * 750 * 3 bytes are 21.5 MB
        ((4000, 3000), 40 * 2**20, 10),  # a half of what is free, for two workers
    ],
)
def test_large_photographs_are_cached_as_far_as_memory_goes(monkeypatch, size, free, megabytes):
    monkeypatch.setattr(small_data, "_free_memory", lambda: free)
    assert small_data.choose_cache([record(*size, [50])] * 10, short_side=320, workers=2).value == megabytes


@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ({"v2": ("2000", "500")}, 1500),
        ({"v2": ("max", "500"), "v1": ("700", "600")}, 100),
        ({"v1": ("600", "700")}, 0),
        ({"v2": ("max", "500")}, 10**6),
        ({"v1": (str(2**63 - 4096), "500")}, 10**6),
        ({}, 10**6),
    ],
)
def test_a_container_has_no_more_memory_than_its_limit(monkeypatch, tmp_path, limits, free):
    monkeypatch.setattr(small_data.os, "sysconf", lambda name: {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 1000}[name])
    files = [(tmp_path / f"{version} limit", tmp_path / f"{version} usage") for version in ("v2", "v1")]
    monkeypatch.setattr(small_data, "_CONTAINER_MEMORY", files)
    for version, numbers in limits.items():
        for kind, number in zip(("limit", "usage"), numbers, strict=True):
            (tmp_path / f"{version} {kind}").write_text(f"{number}\n")
    assert small_data._free_memory() == free


@pytest.mark.parametrize("names", [("avx512_bf16",), ("amx_bf16",), ()])
def test_cpus_with_bfloat16_train_in_it(monkeypatch, names):
    known = {"avx2": True, "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known | dict.fromkeys(names, True), raising=False)
    chosen = values(small_data.choose_precision("cpu"))
    fast = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": "bfloat16", "MODEL.CHANNELS_LAST": True}
    assert chosen == (fast if names else {"SOLVER.AMP.ENABLED": False})


def test_a_torch_that_does_not_know_its_cpu_trains_in_single_precision(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert values(small_data.choose_precision("cpu")) == {"SOLVER.AMP.ENABLED": False}


@pytest.mark.parametrize(("supported", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_gpus_without_bfloat16_train_in_float16(monkeypatch, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    chosen = values(small_data.choose_precision("cuda"))
    assert chosen == {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": dtype}


@pytest.fixture
def data(tmp_path) -> Iterator[Path]:
    """A COCO file of ten images with one to three objects."""
    content = {
        "categories": [{"id": 1, "name": "thing"}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, 11)],
        "annotations": [
            {"id": 10 * i + j, "image_id": i, "category_id": 1, "bbox": [10 * j, 0, 64, 36], "iscrowd": 0, "area": 2304}
            for i in range(1, 11)
            for j in range(1 + i % 3)
        ],
    }
    (tmp_path / "images").mkdir()
    (tmp_path / "data.json").write_text(json.dumps(content))
    before = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_part_is_kept_for_choosing_unless_there_is_other_data(data):
    name = f"coco:{data}/data.json:{data}/images"
    held_out = values(small_data.choose_settings([name], [], "cpu"))
    train, val = (small_data.read_records(held_out[f"DATASETS.{kind}"][0]) for kind in ("TRAIN", "TEST"))
    assert (len(train), len(val)) == (8, 2)
    assert {r["file_name"] for r in train} | {r["file_name"] for r in val} == {
        r["file_name"] for r in small_data.read_records(name)
    }
    assert not {"DATASETS.TRAIN", "DATASETS.TEST"} & values(small_data.choose_settings([name], [name], "cpu")).keys()


def test_sets_of_all_formats_are_divided():
    names = ("coco:a.json", "voc:folder:train", "yolo:data.yaml:train")
    held_out = values(small_data.hold_out(dict.fromkeys(names, 3)))
    assert held_out["DATASETS.TRAIN"] == tuple(f"{name}:0-80%" for name in names)
    assert held_out["DATASETS.TEST"] == tuple(f"{name}:80-100%" for name in names)


@pytest.mark.parametrize("name", ["coco:{}/data.json:{}/images:0-50%", "voc:{}:train:0-50%", "registered"])
def test_what_is_a_part_or_has_none_is_trained_on_whole(data, name, caplog):
    name = name.format(data, data)
    assert small_data.hold_out({f"coco:{data}/data.json": 10, name: 10}) == []
    assert f"{name} cannot be divided. Name other images with --val" in caplog.text


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_set_is_trained_on_whole_unless_each_part_has_images(data, number, caplog):
    content = json.loads((data / "data.json").read_text())
    content["images"] = content["images"][:number]
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] <= number]
    (data / "few.json").write_text(json.dumps(content))
    name = f"coco:{data}/few.json:{data}/images"
    parts = [f"{name}:{part}" for part in (small_data.TRAIN_PART, small_data.VAL_PART)]
    for part in parts:
        register_dataset(part)
    is_divided = "DATASETS.TEST" in values(small_data.choose_settings([name], [], "cpu"))
    assert is_divided == all(DatasetCatalog.get(part) for part in parts) == (number == 3)
    assert is_divided != (f"{name} cannot be divided. Name other images with --val" in caplog.text)


def test_choices_are_options_of_the_config(data):
    name = f"coco:{data}/data.json:{data}/images"
    choices = small_data.choose_settings([name], [], "cpu")
    cfg = read_config(get_config_file(DEFAULT_CONFIG), small_data.as_options(choices))
    assert (f"{name}:0-80%",) == cfg.DATASETS.TRAIN
    # 64 x 36 pixels, 10 % of the short side.
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (320, 480)
    assert all(choice.reason for choice in choices)
