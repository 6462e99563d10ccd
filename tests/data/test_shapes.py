from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO
from torchvision.ops import box_iou

from dynamic_sparse_rcnn.data import shape_images
from dynamic_sparse_rcnn.data.shape_images import ShapesImage, draw_image
from dynamic_sparse_rcnn.data.shapes import SHAPE_CLASSES, ShapesConfig, generate_shapes


@pytest.fixture(scope="module")
def drawn_images() -> list[ShapesImage]:
    config = ShapesConfig(num_images=200)
    return [draw_image(config, "train", number) for number in range(1, 201)]


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_gives_the_same_files(tmp_path):
    config = ShapesConfig(num_images=4)
    generate_shapes(tmp_path / "first", "train", config)
    generate_shapes(tmp_path / "second", "train", config)
    first = file_bytes(tmp_path / "first")
    assert sorted(first) == ["train.json", *(f"train/00000{i}.png" for i in range(1, 5))]
    assert first == file_bytes(tmp_path / "second")


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path):
    few = COCO(generate_shapes(tmp_path / "few", "train", ShapesConfig(num_images=2)).json_path)
    many = COCO(generate_shapes(tmp_path / "many", "train", ShapesConfig(num_images=5)).json_path)
    for image_id in (1, 2):
        name = f"train/{image_id:06d}.png"
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
        assert few.imgToAnns[image_id] == many.imgToAnns[image_id]


@pytest.mark.parametrize(("split", "number"), [("val", 1), ("train", 2)])
def test_another_split_or_number_gives_another_image(split, number):
    reference = draw_image(ShapesConfig(num_images=2), "train", 1)
    other = draw_image(ShapesConfig(num_images=2), split, number)
    assert (other.pixels != reference.pixels).mean() > 0.5


def test_boxes_are_the_extent_of_what_is_drawn(monkeypatch):
    monkeypatch.setattr(shape_images, "_draw_background", lambda rng, size: np.full((size, size, 3), 0.5, np.float32))
    for number in range(1, 41):
        image = draw_image(ShapesConfig(num_images=1, max_objects=1), "train", number)
        difference = np.linalg.norm(image.pixels.astype(float) - 127.5, axis=2)
        drawn = difference > 0.5 * np.median(difference[difference > 0.5 * difference.max()])
        left, top, width, height = cv2.boundingRect(drawn.astype(np.uint8))
        assert np.abs(image.boxes[0] - [left, top, left + width, top + height]).max() <= 1


def test_boxes_lie_inside_the_image_and_have_the_configured_size(drawn_images):
    boxes = np.concatenate([image.boxes for image in drawn_images])
    assert boxes.min() >= 0 and boxes.max() <= 128
    longer_side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert longer_side.max() <= 0.5 * 128 + 2
    uncut = (boxes > 0).all(axis=1) & (boxes < 128).all(axis=1)
    assert longer_side[uncut].min() >= 0.2 * 128 - 2


def test_every_configured_number_of_objects_occurs(drawn_images):
    assert {len(image.boxes) for image in drawn_images} == {1, 2, 3, 4}


def test_boxes_overlap_but_not_much(drawn_images):
    boxes = [torch.from_numpy(image.boxes) for image in drawn_images]
    overlaps = [box_iou(own, own).fill_diagonal_(0).max().item() for own in boxes]
    assert 0.2 < max(overlaps) <= 0.3


def test_classes_are_balanced(drawn_images):
    counts = np.bincount(np.concatenate([image.classes for image in drawn_images]), minlength=len(SHAPE_CLASSES))
    assert counts.min() > 0.7 * counts.mean()


def test_coco_tools_load_the_set(tmp_path):
    paths = generate_shapes(tmp_path, "val", ShapesConfig(num_images=3, image_size=96))
    coco = COCO(paths.json_path)
    assert [coco.cats[i]["name"] for i in sorted(coco.cats)] == list(SHAPE_CLASSES)
    assert len(set(coco.anns)) == sum(len(annotations) for annotations in coco.imgToAnns.values())
    for image_id, entry in coco.imgs.items():
        drawn = draw_image(ShapesConfig(num_images=3, image_size=96), "val", image_id)
        pixels = cv2.imread(str(paths.image_folder / entry["file_name"]))
        assert pixels.shape == (entry["height"], entry["width"], 3) == (96, 96, 3)
        assert np.array_equal(pixels[..., ::-1], drawn.pixels)
        boxes = np.array([annotation["bbox"] for annotation in coco.imgToAnns[image_id]])
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(boxes, drawn.boxes)


def test_detectron2_loads_the_set(tmp_path):
    paths = generate_shapes(tmp_path, "val", ShapesConfig(num_images=3))
    records = load_coco_json(str(paths.json_path), str(paths.image_folder), "shapes_of_this_test")
    for number, record in enumerate(records, start=1):
        assert Path(record["file_name"]).is_file()
        classes = [annotation["category_id"] for annotation in record["annotations"]]
        assert classes == draw_image(ShapesConfig(num_images=3), "val", number).classes.tolist()
    assert len(records) == 3


def test_a_complete_set_of_the_same_configuration_is_reused(tmp_path):
    config = ShapesConfig(num_images=2)
    paths = generate_shapes(tmp_path, "train", config)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    assert generate_shapes(tmp_path, "train", config) == paths
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))] == times


def test_another_configuration_replaces_the_set(tmp_path):
    generate_shapes(tmp_path, "train", ShapesConfig(num_images=3))
    generate_shapes(tmp_path, "train", ShapesConfig(num_images=2, max_size=0.4))
    generate_shapes(tmp_path / "fresh", "train", ShapesConfig(num_images=2, max_size=0.4))
    fresh = file_bytes(tmp_path / "fresh")
    replaced = {name: data for name, data in file_bytes(tmp_path).items() if not name.startswith("fresh")}
    assert replaced == fresh


def test_a_set_with_a_missing_image_is_completed(tmp_path):
    config = ShapesConfig(num_images=2)
    paths = generate_shapes(tmp_path, "train", config)
    before = file_bytes(tmp_path)
    (paths.image_folder / "000002.png").unlink()
    generate_shapes(tmp_path, "train", config)
    assert file_bytes(tmp_path) == before


@pytest.mark.parametrize("content", ['{"images": [], "info": {"description": "mine"}}', "[]", "not json"])
def test_a_json_from_elsewhere_is_not_overwritten(tmp_path, content):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(FileExistsError, match=r"train\.json"):
        generate_shapes(tmp_path, "train", ShapesConfig(num_images=1))
    assert (tmp_path / "train.json").read_text() == content


def test_objects_that_do_not_fit_are_an_error_with_a_remedy():
    config = ShapesConfig(num_images=1, max_objects=10**6, min_size=0.9, max_size=1.0)
    with pytest.raises(ValueError, match="lower max_objects"):
        draw_image(config, "train", 1)
