import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO
from scipy.stats import chi2_contingency
from torchvision.ops import box_iou

from dynamic_sparse_rcnn.data import shape_images
from dynamic_sparse_rcnn.data.shape_images import MIN_CONTRAST, MIN_VISIBLE, ShapesImage, draw_image
from dynamic_sparse_rcnn.data.shapes import SHAPE_CLASSES, ShapesConfig, generate_shapes


@pytest.fixture(scope="module")
def drawn_images() -> list[ShapesImage]:
    config = ShapesConfig(num_images=200)
    return [draw_image(config, "train", number) for number in range(1, 201)]


def visible_masks(image: ShapesImage) -> list[np.ndarray]:
    return [mask & ~image.masks[i + 1 :].any(axis=0) for i, mask in enumerate(image.masks)]


def to_lab(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_gives_the_same_files(tmp_path):
    config = ShapesConfig(num_images=4, seed=3)
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


@pytest.mark.parametrize(("seed", "split", "number"), [(1, "train", 1), (0, "val", 1), (0, "train", 2)])
def test_another_seed_split_or_number_gives_another_image(seed, split, number):
    reference = draw_image(ShapesConfig(num_images=2), "train", 1)
    other = draw_image(ShapesConfig(num_images=2, seed=seed), split, number)
    assert (other.pixels != reference.pixels).mean() > 0.5


def test_boxes_are_tight_around_the_masks(drawn_images):
    for image in drawn_images:
        for box, mask in zip(image.boxes, image.masks, strict=True):
            left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
            assert box.tolist() == [left, top, left + width, top + height]


def test_boxes_are_the_extent_of_what_is_drawn(monkeypatch):
    monkeypatch.setattr(shape_images, "draw_background", lambda rng, size: np.full((size, size, 3), 0.5, np.float32))
    for number in range(1, 41):
        image = draw_image(ShapesConfig(num_images=1, max_objects=1), "train", number)
        difference = np.linalg.norm(image.pixels.astype(float) - 127.5, axis=2)
        drawn = difference > 0.5 * np.median(difference[image.masks[0]])
        left, top, width, height = cv2.boundingRect(drawn.astype(np.uint8))
        assert np.abs(image.boxes[0] - [left, top, left + width, top + height]).max() <= 1
        assert (drawn == image.masks[0]).mean() > 0.995


def test_boxes_lie_inside_the_image_and_have_the_configured_size(drawn_images):
    boxes = np.concatenate([image.boxes for image in drawn_images])
    assert boxes.min() >= 0 and boxes.max() <= 128
    longer_side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert longer_side.max() <= 0.5 * 128 + 2
    uncut = (boxes > 0).all(axis=1) & (boxes < 128).all(axis=1)
    assert longer_side[uncut].min() >= 0.2 * 128 - 2


def test_every_configured_number_of_objects_occurs(drawn_images):
    assert {len(image.boxes) for image in drawn_images} == {1, 2, 3, 4}


@pytest.mark.parametrize("max_overlap", [0.0, 0.3])
def test_no_two_boxes_overlap_more_than_configured(max_overlap):
    config = ShapesConfig(num_images=1, min_objects=3, max_overlap=max_overlap)
    overlaps = []
    for number in range(1, 31):
        boxes = torch.from_numpy(draw_image(config, "train", number).boxes)
        overlaps.append(box_iou(boxes, boxes).fill_diagonal_(0).max().item())
    assert max(overlaps) <= max_overlap + 1e-9
    assert (max(overlaps) > 0) == (max_overlap > 0)


def test_every_object_stays_visible(drawn_images):
    fractions = [
        visible.sum() / mask.sum()
        for image in drawn_images
        for visible, mask in zip(visible_masks(image), image.masks, strict=True)
    ]
    assert min(fractions) >= MIN_VISIBLE
    assert min(fractions) < 0.9, "no image shows one object covering another"


def test_every_object_contrasts_with_the_background_around_it(drawn_images):
    for image in drawn_images:
        lab, background = to_lab(image.pixels), ~image.masks.any(axis=0)
        for visible, mask in zip(visible_masks(image), image.masks, strict=True):
            around = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & background
            color = np.median(lab[visible], axis=0)
            assert np.median(np.linalg.norm(lab[around] - color, axis=1)) > 0.8 * MIN_CONTRAST


def test_classes_are_balanced_and_color_does_not_tell_them(drawn_images):
    hues, classes = [], []
    for image in drawn_images:
        hsv = cv2.cvtColor(image.pixels, cv2.COLOR_RGB2HSV)
        hues += [np.median(hsv[visible][:, 0]) for visible in visible_masks(image)]
        classes += image.classes.tolist()
    counts = np.bincount(classes, minlength=len(SHAPE_CLASSES))
    assert counts.min() > 0.7 * counts.mean()
    table, _, _ = np.histogram2d(hues, classes, bins=[6, len(SHAPE_CLASSES)], range=[[0, 180], [-0.5, 4.5]])
    assert table.sum() == len(classes)
    assert chi2_contingency(table).pvalue > 0.01


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


def test_images_without_objects_can_be_asked_for(tmp_path):
    paths = generate_shapes(tmp_path, "empty", ShapesConfig(num_images=2, min_objects=0, max_objects=0))
    content = json.loads(paths.json_path.read_text())
    assert len(content["images"]) == 2 and content["annotations"] == []
    assert draw_image(ShapesConfig(num_images=1, min_objects=0, max_objects=0), "x", 1).boxes.shape == (0, 4)


def test_a_complete_set_of_the_same_configuration_is_reused(tmp_path):
    config = ShapesConfig(num_images=2)
    paths = generate_shapes(tmp_path, "train", config)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    assert generate_shapes(tmp_path, "train", config) == paths
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))] == times


def test_another_configuration_replaces_the_set(tmp_path):
    generate_shapes(tmp_path, "train", ShapesConfig(num_images=3))
    generate_shapes(tmp_path, "train", ShapesConfig(num_images=2, seed=1))
    generate_shapes(tmp_path / "fresh", "train", ShapesConfig(num_images=2, seed=1))
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


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("num_images", {"num_images": 0}),
        ("min_objects", {"min_objects": 3, "max_objects": 2}),
        ("max_size", {"max_size": 1.5}),
        ("min_size", {"min_size": 0.01}),
        ("max_overlap", {"max_overlap": -0.1}),
        ("seed", {"seed": -1}),
    ],
)
def test_a_value_out_of_range_is_named(field, values):
    with pytest.raises(ValueError, match=field):
        ShapesConfig(**{"num_images": 1, **values})


def test_objects_that_do_not_fit_are_an_error_with_a_remedy():
    config = ShapesConfig(num_images=1, min_objects=4, min_size=0.9, max_size=1.0)
    with pytest.raises(ValueError, match="lower max_objects"):
        draw_image(config, "train", 1)
