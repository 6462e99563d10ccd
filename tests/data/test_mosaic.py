"""Mosaics of four training images, against the pixels that they show and against boxes worked out by hand."""

from __future__ import annotations

import itertools
import weakref

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng

from dynamic_sparse_rcnn.data.loader import TrainLoader, build_train_loader
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.data.mosaic import make_mosaic

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
NO_BOXES = np.zeros((0, 4), dtype=np.float32)


def none_are_crowd(number):
    return np.zeros(number, dtype=bool)


def an_image(color, height=80, width=100, box=(20, 10, 70, 60)):
    """A black image with one rectangle."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = color
    return image, np.array([box], dtype=np.float32)


def pixels_of(image, color):
    """The box around all pixels of about this color; None without any."""
    rows, columns = np.nonzero((np.abs(image.astype(int) - color) < 100).all(-1))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def test_boxes_lie_where_the_mosaic_shows_their_objects():
    sizes = [(80, 100), (200, 90), (60, 240), (150, 150)]
    images, boxes = zip(*(an_image(color, *size) for color, size in zip(COLORS, sizes, strict=True)), strict=True)
    shown = 0
    for seed in range(40):
        np.random.seed(seed)
        mosaic, moved = make_mosaic(images, boxes, none_are_crowd(4))
        assert mosaic.shape == images[0].shape and mosaic.dtype == np.uint8 and moved.dtype == np.float32
        for color, box in zip(COLORS, moved, strict=True):
            if box.any():
                assert box.tolist() == pytest.approx(pixels_of(mosaic, color), abs=1.5)
                shown += 1
    assert 80 < shown < 160  # of 160 objects, some are cut off


@pytest.fixture
def in_the_middle(monkeypatch):
    """Images meet in the middle, each as large as the mosaic: it shows a quarter of each."""
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size=None: 1.0 if size is None else np.full(size, 0.5))


def test_four_images_meet_at_a_point_and_each_shows_the_quadrant_that_is_there(in_the_middle):
    quadrants = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    large = np.ones((30, 50), dtype=np.uint8)
    images = [np.kron(4 * number + quadrants, large)[..., None].repeat(3, -1) for number in range(4)]
    mosaic, _ = make_mosaic(images, [NO_BOXES] * 4, none_are_crowd(0))
    assert np.array_equal(mosaic[..., 0], np.kron([[3, 6], [9, 12]], large))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([50, 50, 100, 100], [0, 0, 50, 50]),  # all of it shown
        ([20, 20, 100, 100], [0, 0, 50, 50]),  # 2500 of 6400
        ([0, 20, 100, 100], [0, 0, 50, 50]),  # 2500 of 8000
        ([0, 15, 100, 100], [0, 0, 0, 0]),  # 2500 of 8500
        ([49.5, 0, 50.5, 100], [0, 0, 0, 0]),  # half of it, but half a pixel wide
        ([0, 0, 40, 40], [0, 0, 0, 0]),  # none of it
    ],
)
def test_a_box_of_which_less_than_three_tenths_are_left_is_dropped(in_the_middle, box, expected):
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    first = np.array([box], dtype=np.float32)
    _, boxes = make_mosaic([image] * 4, [first, NO_BOXES, NO_BOXES, NO_BOXES], none_are_crowd(1))
    assert boxes.tolist() == [expected]


def test_center_and_scales_are_drawn_from_their_ranges_each_alone():
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    at_center = [[150, 75, 200, 100], [0, 75, 50, 100], [150, 0, 200, 25], [0, 0, 50, 25]]
    drawn = []
    for seed in range(200):
        np.random.seed(seed)
        boxes_of_images = [np.array([box], dtype=np.float32) for box in at_center]
        _, boxes = make_mosaic([image] * 4, boxes_of_images, none_are_crowd(4))
        drawn.append([boxes[0, 2] / 200, boxes[0, 3] / 100, *(boxes[:, 2] - boxes[:, 0]) / 50])
    found = np.array(drawn)
    assert found.min(0) == pytest.approx([0.35, 0.35, *[0.5] * 4], abs=0.03)
    assert found.max(0) == pytest.approx([0.65, 0.65, *[1.0] * 4], abs=0.03)
    assert np.abs(np.corrcoef(found.T) - np.eye(6)).max() < 0.3


def test_a_mosaic_is_gray_where_no_image_lies():
    images = [np.full((height, 100, 3), 255, dtype=np.uint8) for height in (100, 5, 5, 5)]
    np.random.seed(0)
    mosaic, _ = make_mosaic(images, [NO_BOXES] * 4, none_are_crowd(0))
    assert np.unique(mosaic).tolist() == [114, 255]


def test_any_image_size_makes_a_mosaic():
    images = [np.zeros((*size, 3), dtype=np.uint8) for size in ((1, 1), (1, 300), (300, 1), (7, 5))]
    for first in range(4):
        turned = images[first:] + images[:first]
        mosaic, boxes = make_mosaic(turned, [np.array([[0, 0, 1, 1]], dtype=np.float32)] * 4, none_are_crowd(4))
        assert mosaic.shape == turned[0].shape and boxes.shape == (4, 4) and np.isfinite(boxes).all()


@pytest.fixture
def records(tmp_path):
    """Four images, each with one object of a class of its own."""
    found = []
    for number, color in enumerate(COLORS):
        image, boxes = an_image(color)
        path = str(tmp_path / f"{number}.png")
        cv2.imwrite(path, image[..., ::-1])
        box = {"bbox": boxes[0].tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": number}
        found.append({"file_name": path, "image_id": number, "height": 80, "width": 100, "annotations": [box]})
    return found


@pytest.fixture
def mosaic_cfg(tiny_cfg):
    tiny_cfg.INPUT.MIN_SIZE_TRAIN, tiny_cfg.INPUT.MAX_SIZE_TRAIN = (160,), 200
    tiny_cfg.INPUT.FORMAT, tiny_cfg.INPUT.MOSAIC = "RGB", 1.0
    return tiny_cfg


def test_each_object_of_a_mosaic_keeps_its_class(mosaic_cfg, records):
    mapper = DetectionMapper(mosaic_cfg, is_train=True, others=records[1:])
    classes = set()
    for seed in range(20):
        seed_all_rng(seed)
        mapped = mapper(records[0])
        assert mapped["image"].shape == (3, 160, 200) and mapped["file_name"] == records[0]["file_name"]
        image = mapped["image"].permute(1, 2, 0).numpy()
        instances = mapped["instances"]
        for number in instances.gt_classes.unique().tolist():
            boxes = instances.gt_boxes.tensor[instances.gt_classes == number]
            around = [*boxes[:, :2].min(0).values.tolist(), *boxes[:, 2:].max(0).values.tolist()]
            seen = pixels_of(image, COLORS[number])
            # Parts that are too small for a box may be seen beside those that have one.
            assert seen[0] - 3 <= around[0] <= around[2] <= seen[2] + 3
            assert seen[1] - 3 <= around[1] <= around[3] <= seen[3] + 3
            classes.add(number)
    assert classes == {0, 1, 2, 3}


def test_the_share_of_mosaics_is_that_of_the_config_and_evaluations_have_none(mosaic_cfg, records):
    mosaic_cfg.INPUT.MOSAIC = 0.5
    mapper = DetectionMapper(mosaic_cfg, is_train=True, others=records[1:])
    mosaics = 0
    for seed in range(100):
        seed_all_rng(seed)
        colored = mapper(records[0])["image"].permute(1, 2, 0).numpy()
        mosaics += any(pixels_of(colored, color) for color in COLORS[1:])
    assert 35 <= mosaics <= 65
    mosaic_cfg.INPUT.MOSAIC, mosaic_cfg.INPUT.MIN_SIZE_TEST = 1.0, 80
    tested = DetectionMapper(mosaic_cfg, is_train=False, others=records[1:])(records[0])
    assert torch.equal(tested["image"], torch.as_tensor(an_image(COLORS[0])[0]).permute(2, 0, 1))


def test_the_loader_gives_mosaics_their_images_and_a_resumed_one_gives_the_same(mosaic_cfg, records):
    def batches(start):
        mapper = DetectionMapper(mosaic_cfg, is_train=True)
        loader = TrainLoader(records, mapper, total_batch_size=2, seed=3)
        loader.start_iter = start
        iterator = iter(loader)
        return [[mapped["image"] for mapped in next(iterator)] for _ in range(4 - start)]

    whole, resumed = batches(0), batches(2)
    for expected, found in zip(whole[2:], resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_crowd_regions_are_cut_but_never_dropped(mosaic_cfg, records):
    crowd = {"bbox": [0, 0, 100, 80], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1}
    for record in records:
        record["annotations"].append(crowd)
    mosaic_cfg.MODEL.SparseRCNN.IGNORE_CROWD = True
    mapper = DetectionMapper(mosaic_cfg, is_train=True, others=records[1:])
    for seed in range(20):
        seed_all_rng(seed)
        instances = mapper(records[0])["instances"]
        assert instances.gt_is_crowd.sum() == 4
        assert (instances.gt_classes[instances.gt_is_crowd] == 0).all()


def test_the_loader_takes_the_images_of_a_mosaic_from_the_whole_data_set(mosaic_cfg, records):
    many = [records[0]] * 20 + records[1:]
    mapper = DetectionMapper(mosaic_cfg, is_train=True)
    loader = TrainLoader(
        many, mapper, total_batch_size=1, seed=3, sampler=itertools.repeat(0), aspect_ratio_grouping=False
    )
    batches = itertools.islice(loader, 30)
    assert len({number for (mapped,) in batches for number in mapped["instances"].gt_classes.tolist()}) > 1
    assert not mapper.others  # the caller's is left alone


class Watched(dict):
    """A record that can be referred to weakly."""


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_loader_keeps_records_serialized_alone(mosaic_cfg, records, share):
    mosaic_cfg.INPUT.MOSAIC = share
    watched = [Watched(record) for record in records]
    references = [weakref.ref(record) for record in watched]
    loader = TrainLoader(watched, DetectionMapper(mosaic_cfg, is_train=True), total_batch_size=2, seed=3)
    del watched
    assert all(reference() is None for reference in references)
    assert len(next(iter(loader))) == 2


def test_a_sampler_that_leaves_images_out_has_no_mosaics(mosaic_cfg, records):
    mosaic_cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    with pytest.raises(ValueError, match=r"RandomSubsetTrainingSampler, but INPUT.MOSAIC takes images from the whole"):
        build_train_loader(mosaic_cfg, records, DetectionMapper(mosaic_cfg, is_train=True))


def test_without_other_images_a_mosaic_is_an_error(mosaic_cfg, records):
    with pytest.raises(ValueError, match=r"INPUT.MOSAIC .*mapper.mosaic\) is 1.0, but no other images are given"):
        DetectionMapper(mosaic_cfg, is_train=True)(records[0])


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_an_error(mosaic_cfg, share):
    mosaic_cfg.INPUT.MOSAIC = share
    with pytest.raises(ValueError, match=rf"INPUT.MOSAIC .*mapper.mosaic\) is {share}: give the share of images"):
        DetectionMapper(mosaic_cfg, is_train=True)
