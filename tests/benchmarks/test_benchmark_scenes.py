"""The generated set on which image-dependent proposals must help."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from pycocotools.coco import COCO
from scenes import CLASS_NAMES, COLORS, KINDS, PLACES, places, write_scenes
from torchvision.ops import box_iou


def test_every_kind_has_places_of_its_own():
    boxes = torch.from_numpy(np.concatenate([places(kind) for kind in range(KINDS)]))
    assert len(boxes) == KINDS * PLACES
    assert torch.equal(box_iou(boxes, boxes), torch.eye(len(boxes), dtype=boxes.dtype))


def test_the_set_has_the_objects_of_its_scenes_at_their_places_in_their_colors(tmp_path):
    name = write_scenes(tmp_path, "val", 4)
    assert name == f"coco:{tmp_path}/val.json:{tmp_path}/val"
    coco = COCO(str(tmp_path / "val.json"))
    assert [category["name"] for category in coco.cats.values()] == list(CLASS_NAMES)
    for number, image in coco.imgs.items():
        pixels = cv2.imread(str(tmp_path / "val" / image["file_name"]))[..., ::-1]
        annotations = coco.imgToAnns[number]
        assert len(annotations) == PLACES
        for annotation, place in zip(annotations, places(number % KINDS), strict=True):
            x, y, width, height = map(int, annotation["bbox"])
            found = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64)
            assert box_iou(found, torch.from_numpy(place)[None]).item() > 0.5
            color = pixels[y : y + height, x : x + width].mean((0, 1))
            assert np.abs(color - COLORS[annotation["category_id"] - 1]).max() < 10
