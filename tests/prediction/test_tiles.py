"""Small objects in large images, found in tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torchvision.ops import box_iou

from dynamic_sparse_rcnn import Predictor, write_checkpoint
from dynamic_sparse_rcnn.data.shape_images import ShapesConfig, draw_image
from dynamic_sparse_rcnn.prediction import predictor as predictor_module
from dynamic_sparse_rcnn.prediction.sources import Frame
from dynamic_sparse_rcnn.prediction.tiles import OVERLAP, merge, split


def blank(height: int, width: int) -> Frame:
    return Frame("blank", np.zeros((height, width, 3), np.uint8))


def detections(*boxes: list[float], scores: list[float] | None = None, classes: list[int] | None = None) -> Instances:
    return Instances(
        (1, 1),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.tensor(scores or [0.5] * len(boxes)),
        pred_classes=torch.tensor(classes or [0] * len(boxes)),
    )


@pytest.mark.parametrize(("height", "width"), [(100, 1000), (333, 1001), (200, 101), (100, 100), (7, 640)])
def test_everything_smaller_than_the_overlap_is_whole_in_a_tile(height, width):
    side = 100
    parts = split(blank(height, width), side)
    assert parts[0][0].pixels.shape[:2] == (height, width)
    tiles = parts[1:] or parts
    spans = [(x, y, x + tile.pixels.shape[1], y + tile.pixels.shape[0]) for tile, (x, y) in tiles]
    assert all(x1 <= width and y1 <= height and x1 - x0 <= side and y1 - y0 <= side for x0, y0, x1, y1 in spans)
    reach = int(OVERLAP * side) - 1
    for top in range(max(1, height - reach)):
        for left in range(0, max(1, width - reach), 7):
            bottom, right = min(height, top + reach), min(width, left + reach)
            assert any(x0 <= left and y0 <= top and right <= x1 and bottom <= y1 for x0, y0, x1, y1 in spans)


def test_boxes_come_back_to_their_place_and_duplicates_and_cut_objects_are_left_out():
    parts = split(blank(100, 180), 100)
    assert [corner for _, corner in parts] == [(0, 0), (0, 0), (80, 0)]
    whole = detections([10, 10, 170, 90], scores=[0.6])
    left = detections([0, 20, 30, 40], [82, 50, 99, 70], [60, 10, 99.5, 90], scores=[0.9, 0.8, 0.95])
    right = detections([1, 50, 19, 70], [70, 0, 100, 40], [0, 10, 60, 90], scores=[0.7, 0.5, 0.9])
    found = merge([whole, left, right], parts)
    assert found.image_size == (100, 180)
    # Of the object at (82, 50) the left tile sees the inner edge, the right tile all of it.
    assert found.pred_boxes.tensor.tolist() == [[0, 20, 30, 40], [10, 10, 170, 90], [150, 0, 180, 40]]
    far = detections([1.5, 50, 19, 70], scores=[0.7])
    assert merge([whole, left, far], parts).pred_boxes.tensor[1].tolist() == [81.5, 50, 99, 70]


def test_of_two_tiles_that_see_an_object_one_tells_unless_the_classes_differ():
    parts = split(blank(100, 180), 100)
    left, right = detections([84, 50, 96, 70], scores=[0.8]), detections([4, 50, 16, 71], scores=[0.9])
    assert merge([detections(), left, right], parts).scores.tolist() == pytest.approx([0.9])
    right.pred_classes[0] = 1
    assert len(merge([detections(), left, right], parts)) == 2


@pytest.mark.slow
def test_small_objects_of_a_large_montage_are_found_in_tiles_alone():
    """The released detector of shapes on 4096 x 1536 pixels, whose objects are 60 to 200 pixels large."""
    canvas, boxes, enlarged = np.zeros((1536, 4096, 3), np.uint8), [], 4
    for number in range(24):
        drawn = draw_image(ShapesConfig(num_images=24), "montage", number)
        x, y = number % 8 * 512, number // 8 * 512
        canvas[y : y + 512, x : x + 512] = drawn.pixels.repeat(enlarged, 0).repeat(enlarged, 1)
        boxes.append(torch.as_tensor(drawn.boxes) * enlarged + torch.tensor([x, y, x, y]))
    truth = torch.cat(boxes).float()

    def recall(**arguments) -> float:
        found = Predictor(device="cpu", batch_size=8, **arguments)(canvas[..., ::-1]).instances
        assert found.image_size == (1536, 4096)
        return (box_iou(truth, found.pred_boxes.tensor).amax(1) > 0.5).float().mean().item() if len(found) else 0.0

    assert recall() < 0.1
    assert recall(tiles=512) > 0.8


@pytest.mark.parametrize("tiles", [0, -5, 8])
def test_tiles_of_no_use_are_refused(tiles):
    with pytest.raises(ValueError, match="tiles at least 32"):
        Predictor(tiles=tiles)


def test_an_image_of_one_tile_keeps_its_detections_as_they_are():
    found = detections([10, 10, 50, 50], [10, 10, 50, 51], scores=[0.9, 0.8])
    assert merge([found], split(blank(100, 100), 100)) is found


def test_the_edge_of_a_tile_is_as_wide_as_its_pixels_are_shrunk():
    parts = split(blank(100, 180), 100)
    near = detections([10, 20, 95, 40])
    assert len(merge([detections(), near, detections()], parts)) == 1
    assert len(merge([detections(), near, detections()], parts, shrinkage=6.0)) == 0
    assert len(merge([detections(), near, detections()], parts, shrinkage=0.1)) == 1


def test_tiles_that_are_shrunk_are_merged_as_such(tiny_cfg, tmp_path, monkeypatch):
    tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.INPUT.MAX_SIZE_TEST = 64, 64
    write_checkpoint(tmp_path / "w.safetensors", {"model": build_model(tiny_cfg).state_dict()})
    predictor = Predictor(tiny_cfg, str(tmp_path / "w.safetensors"), tiles=128)
    seen = []
    monkeypatch.setattr(predictor_module, "merge", lambda found, parts, shrinkage: seen.append(shrinkage) or found[0])
    predictor(np.zeros((128, 256, 3), np.uint8))
    assert seen == [2.0]
