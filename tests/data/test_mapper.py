"""The training augmentation of Sparse R-CNN, from detectron2's parts."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamic_sparse_rcnn.data.mapper import DetectionMapper, build_augmentations


@pytest.fixture
def record(tmp_path):
    """An image that is black but for a white rectangle, which is its ground truth."""
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    image[100:180, 120:260] = 255
    cv2.imwrite(str(tmp_path / "image.png"), image)
    box = {"bbox": [120, 100, 140, 80], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 1,
        "height": 300,
        "width": 400,
        "annotations": [box, box | {"iscrowd": 1}],
    }


@pytest.fixture
def mapper_cfg(tiny_cfg):
    tiny_cfg.INPUT.MIN_SIZE_TRAIN = (320,)
    tiny_cfg.INPUT.CROP.ENABLED = True
    tiny_cfg.INPUT.CROP.TYPE = "absolute_range"
    tiny_cfg.INPUT.CROP.SIZE = (200, 300)
    return tiny_cfg


def test_boxes_follow_the_image_through_flip_crop_and_resize(mapper_cfg, record):
    mapper = DetectionMapper(mapper_cfg, is_train=True)
    cropped = 0
    for seed in range(20):
        seed_all_rng(seed)
        mapped = mapper(record)
        image, instances = mapped["image"].numpy(), mapped["instances"]
        assert min(image.shape[1:]) == 320 or max(image.shape[1:]) <= mapper_cfg.INPUT.MAX_SIZE_TRAIN
        cropped += image.shape[1:] != (320, 427)
        rows, columns = np.nonzero(image.max(0) > 127)
        if not len(instances):
            continue
        assert len(instances) == 1  # the crowd is no target
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert instances.gt_boxes.tensor[0].tolist() == pytest.approx(seen, abs=2)
        assert instances.gt_classes.tolist() == [1]
    assert 4 <= cropped <= 16


def test_without_the_crop_images_are_only_flipped_and_resized(mapper_cfg):
    mapper_cfg.INPUT.CROP.ENABLED = False
    kinds = {type(x) for x in build_augmentations(mapper_cfg, is_train=True)}
    assert kinds == {T.ResizeShortestEdge, T.RandomFlip}


def test_color_jitter_changes_brightness_contrast_and_saturation_within_its_range_in_training_alone(
    plain_mapper_cfg, tmp_path
):
    bands = np.array([(140, 60, 60), (50, 50, 50), (110, 110, 110)], dtype=np.uint8)  # from top to bottom
    image = np.broadcast_to(np.repeat(bands, 20, axis=0)[:, None], (60, 60, 3))
    cv2.imwrite(str(tmp_path / "bands.png"), image[..., ::-1])
    record = {"file_name": str(tmp_path / "bands.png"), "image_id": 1, "height": 60, "width": 60, "annotations": []}
    plain_mapper_cfg.INPUT.COLOR_JITTER, plain_mapper_cfg.INPUT.FORMAT = 0.3, "RGB"
    factors = []
    for seed in range(100):
        seed_all_rng(seed)
        mapped = DetectionMapper(plain_mapper_cfg, is_train=True)(record)["image"].double()
        red, dark, light = (mapped[:, int(part * mapped.shape[1]), 5] for part in (1 / 6, 1 / 2, 5 / 6))
        # Brightness and contrast map gray values by one line, whose slope is their product; contrast keeps the mean.
        slope = (light - dark)[0] / 60
        brightness = slope + (dark[0] - 50 * slope) / image.mean()
        saturation = (red[0] - red[1]) / 80 / slope  # leaves gray alone
        factors.append([brightness, slope / brightness, saturation])
    found = np.array(factors, dtype=float)
    assert (found.min(0) > 0.65).all() and (found.min(0) < 0.75).all()
    assert (found.max(0) < 1.35).all() and (found.max(0) > 1.25).all()
    tested = DetectionMapper(plain_mapper_cfg, is_train=False)(record)["image"]
    assert (tested[:, 2, 5].numpy() == bands[0]).all()


@pytest.mark.parametrize("jitter", [-0.1, 1.0])
def test_a_color_jitter_out_of_range_is_an_error(mapper_cfg, jitter):
    mapper_cfg.INPUT.COLOR_JITTER = jitter
    with pytest.raises(ValueError, match=rf"INPUT.COLOR_JITTER is {jitter}: give a number from 0"):
        build_augmentations(mapper_cfg, is_train=True)


def test_color_jitter_needs_rgb(mapper_cfg):
    mapper_cfg.INPUT.COLOR_JITTER, mapper_cfg.INPUT.FORMAT = 0.3, "BGR"
    with pytest.raises(ValueError, match=r"INPUT.FORMAT is 'BGR': INPUT.COLOR_JITTER needs RGB"):
        build_augmentations(mapper_cfg, is_train=True)


def test_at_inference_the_image_is_only_resized(mapper_cfg, record):
    mapper_cfg.INPUT.MIN_SIZE_TEST = 150
    assert [type(x) for x in build_augmentations(mapper_cfg, is_train=False)] == [T.ResizeShortestEdge]
    mapped = DetectionMapper(mapper_cfg, is_train=False)(record)
    assert mapped["image"].shape == (3, 150, 200)
    assert (mapped["height"], mapped["width"]) == (300, 400)
    assert len(mapped["instances"]) == 1  # for the losses of an evaluation
    record.pop("annotations")
    assert "instances" not in DetectionMapper(mapper_cfg, is_train=False)(record)


@pytest.fixture
def plain_mapper_cfg(mapper_cfg):
    mapper_cfg.INPUT.CROP.ENABLED = False
    return mapper_cfg


@pytest.fixture
def plain_mapper(plain_mapper_cfg):
    return DetectionMapper(plain_mapper_cfg, is_train=True)


def with_boxes(record, boxes):
    annotations = [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for box in boxes]
    return record | {"annotations": annotations}


FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes=st.lists(st.tuples(FINITE, FINITE, FINITE, FINITE), max_size=20))
def test_whatever_boxes_an_image_has_those_that_are_learned_lie_in_it(mapper_cfg, record, boxes):
    instances = DetectionMapper(mapper_cfg, is_train=True)(with_boxes(record, boxes))["instances"]
    found = instances.gt_boxes.tensor
    height, width = instances.image_size
    assert found.isfinite().all() and (found[:, 2:] > found[:, :2]).all()
    assert (found >= 0).all() and (found <= found.new_tensor([width, height, width, height])).all()
    assert len(instances.gt_classes) == len(found)


def test_a_huge_box_is_learned_as_the_part_of_it_inside_the_image(plain_mapper, record):
    instances = plain_mapper(with_boxes(record, [[-1e9, -1e9, 1e9, 1e9]]))["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, *instances.image_size[::-1]]]


def test_an_image_without_annotations_gives_no_instances_but_the_same_fields(plain_mapper, record):
    empty = plain_mapper(with_boxes(record, []))["instances"]
    full = plain_mapper(record)["instances"]
    assert len(empty) == 0
    assert empty.get_fields().keys() == full.get_fields().keys()


def test_an_image_that_can_no_longer_be_read_is_replaced_in_training_alone(mapper_cfg, record, tmp_path, caplog):
    mapper = DetectionMapper(mapper_cfg, is_train=True, spares=[record])
    gone = record | {"file_name": str(tmp_path / "gone.png")}
    with caplog.at_level(logging.WARNING):
        assert mapper(gone)["file_name"] == record["file_name"]
    assert "gone.png cannot be used" in caplog.text
    for helpless in (
        DetectionMapper(mapper_cfg, is_train=True, spares=[gone]),
        DetectionMapper(mapper_cfg, is_train=False, spares=[record]),
    ):
        with pytest.raises(OSError, match=r"gone\.png cannot be used.*Replace"):
            helpless(gone)


def test_an_image_that_nothing_would_be_left_of_is_named_and_replaced(mapper_cfg, record, tmp_path, caplog):
    cv2.imwrite(str(tmp_path / "strip.png"), np.zeros((1, 4000, 3), np.uint8))
    strip = {"file_name": str(tmp_path / "strip.png"), "image_id": 2, "height": 1, "width": 4000, "annotations": []}
    assert DetectionMapper(mapper_cfg, is_train=True, spares=[record])(strip)["file_name"] == record["file_name"]
    assert "strip.png is 4000x1: with its long side resized to 1333 pixels, nothing is left" in caplog.text
    with pytest.raises(OSError, match=r"strip\.png is 4000x1: with .*Replace"):
        DetectionMapper(mapper_cfg, is_train=False)(strip)


def test_no_image_takes_much_memory_before_it_is_cropped(mapper_cfg):
    crop, *_ = build_augmentations(mapper_cfg, is_train=True)
    (resize, _) = crop.aug.augs
    for height, width in ((2, 4000), (4000, 2), (300, 400), (100, 800)):
        transform = resize.get_transform(np.zeros((height, width, 3), np.uint8))
        assert transform.new_h * transform.new_w <= 600 * 4 * mapper_cfg.INPUT.MAX_SIZE_TRAIN
        if max(height, width) <= 8 * min(height, width):
            assert min(transform.new_h, transform.new_w) in (400, 500, 600)


def test_crowd_regions_are_kept_and_marked_where_the_config_asks_for_it(mapper_cfg, record):
    mapper_cfg.MODEL.SparseRCNN.IGNORE_CROWD = True
    mapper_cfg.INPUT.CROP.ENABLED = False
    instances = DetectionMapper(mapper_cfg, is_train=True)(record)["instances"]
    assert instances.gt_is_crowd.tolist() == [False, True]
    assert torch.equal(instances.gt_boxes.tensor[0], instances.gt_boxes.tensor[1])
