"""Images in memory: read once, shrunk, with their boxes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng

from dynamic_sparse_rcnn.data import mapper as mapper_module
from dynamic_sparse_rcnn.data.image_cache import ImageCache
from dynamic_sparse_rcnn.data.mapper import DetectionMapper


@pytest.fixture
def record(tmp_path):
    """A large image, black but for a white rectangle, which is its ground truth."""
    image = np.zeros((900, 1200, 3), dtype=np.uint8)
    image[300:600, 240:840] = 255
    cv2.imwrite(str(tmp_path / "image.png"), image)
    box = {"bbox": [240, 300, 600, 300], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    return {"file_name": str(tmp_path / "image.png"), "image_id": 1, "annotations": [box]}


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The files that are read."""
    files: list[str] = []
    read = mapper_module.read_image

    def reading(file: str, image_format: str) -> np.ndarray:
        files.append(file)
        return read(file, image_format)

    monkeypatch.setattr(mapper_module, "read_image", reading)
    return files


def build(cfg, megabytes: int, is_train: bool = True, **keys) -> DetectionMapper:
    cfg.INPUT.MIN_SIZE_TRAIN = (96, 160)
    cfg.DATALOADER.CACHE_MEGABYTES = megabytes
    return DetectionMapper(cfg, is_train=is_train)


def test_a_large_image_is_read_once_and_its_box_is_where_it_was(tiny_cfg, record, reads):
    mapper = build(tiny_cfg, megabytes=1)
    for seed in range(10):
        seed_all_rng(seed)
        mapped = mapper(record)
        assert (mapped["height"], mapped["width"]) == (900, 1200)
        rows, columns = np.nonzero(mapped["image"].numpy().max(0) > 127)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert mapped["instances"].gt_boxes.tensor[0].tolist() == pytest.approx(seen, abs=1.01)
        assert min(mapped["instances"].image_size) in (96, 160)
    assert len(reads) == 1


def test_an_image_is_nearly_what_it_is_without_a_cache_and_a_small_one_exactly(tiny_cfg, record, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for name, size, tolerance in (("large.png", (1200, 900), 3), ("small.png", (400, 300), 0)):
        cv2.imwrite(str(tmp_path / name), cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC))
        image = record | {"file_name": str(tmp_path / name), "annotations": []}
        mapped = []
        for megabytes in (0, 1):
            mapper = build(tiny_cfg, megabytes)
            seed_all_rng(1)
            mapped.append(mapper(image)["image"].int())
        assert mapped[0].shape == mapped[1].shape
        assert (mapped[0] - mapped[1]).abs().max() <= tolerance


def test_what_does_not_fit_is_read_again_and_is_the_same(record):
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    cache, calls = ImageCache(short_side=50, max_bytes=50 * 100 * 3), []

    def read() -> np.ndarray:
        calls.append(1)
        return image

    first = [cache.get(key, read) for key in "aabb"]
    assert len(calls) == 3
    assert all((x.height, x.width, x.pixels.shape) == (100, 200, (50, 100, 3)) for x in first)
    assert all(np.array_equal(x.pixels, first[0].pixels) for x in first)


def test_evaluations_have_no_cache(tiny_cfg, record, reads):
    mapper = build(tiny_cfg, megabytes=100, is_train=False)
    assert np.array_equal(mapper(record)["image"], mapper(record)["image"])
    assert len(reads) == 2
