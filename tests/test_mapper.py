"""The training augmentation of Sparse R-CNN, from detectron2's parts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng

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


def test_at_inference_the_image_is_only_resized(mapper_cfg, record):
    mapper_cfg.INPUT.MIN_SIZE_TEST = 150
    assert [type(x) for x in build_augmentations(mapper_cfg, is_train=False)] == [T.ResizeShortestEdge]
    mapped = DetectionMapper(mapper_cfg, is_train=False)(record)
    assert mapped["image"].shape == (3, 150, 200)
    assert (mapped["height"], mapped["width"]) == (300, 400)
    assert "instances" not in mapped
