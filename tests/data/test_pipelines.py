"""Pipelines of other libraries inside the mapper: boxes and classes stay together."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng

from dynamic_sparse_rcnn.data.mapper import DetectionMapper, build_augmentations
from dynamic_sparse_rcnn.data.pipelines import AlbumentationsPipeline

WIDTH, HEIGHT = 120, 80
# A color for each class, which tells where each box has to be.
BOXES = np.array([[10, 10, 40, 30], [60, 20, 110, 70], [5, 50, 25, 75]], dtype=np.float32)
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.fixture
def image() -> np.ndarray:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for (x1, y1, x2, y2), color in zip(BOXES.astype(int), COLORS, strict=True):
        image[y1:y2, x1:x2] = color
    return image


def save(pipeline, path: Path) -> str:
    albumentations = pytest.importorskip("albumentations")
    albumentations.save(pipeline, path, data_format="json" if path.suffix == ".json" else "yaml")
    return str(path)


def geometry(folder: Path, suffix: str = ".yaml") -> str:
    """Crops and flips, none of which invents a color."""
    A = pytest.importorskip("albumentations")
    return save(A.Compose([A.RandomCrop(50, 70, p=0.7), A.HorizontalFlip(), A.VerticalFlip()]), folder / f"p{suffix}")


def augment(file: str, image: np.ndarray, boxes: np.ndarray = BOXES) -> tuple[np.ndarray, np.ndarray]:
    return run(AlbumentationsPipeline(file, "RGB"), image, boxes)


def run(
    pipeline: AlbumentationsPipeline, image: np.ndarray, boxes: np.ndarray = BOXES
) -> tuple[np.ndarray, np.ndarray]:
    augmented = T.AugInput(image, boxes=boxes.copy())
    pipeline(augmented)
    return augmented.image, augmented.boxes


def seen(image: np.ndarray, channel: int) -> list[int] | None:
    """The rectangle of a color, or None."""
    rows, columns = np.nonzero(image[..., channel] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_boxes_follow_the_image_and_lost_ones_have_no_area(tmp_path: Path, image: np.ndarray, suffix: str) -> None:
    pipeline = AlbumentationsPipeline(geometry(tmp_path, suffix), "RGB")
    lost = 0
    for seed in range(30):
        seed_all_rng(seed)
        new_image, boxes = run(pipeline, image)
        for channel, box in enumerate(boxes):
            expected = seen(new_image, channel)
            lost += expected is None
            assert (box[2:] <= box[:2]).any() if expected is None else box.tolist() == pytest.approx(expected, abs=1e-3)
    assert lost > 5


def test_the_seed_decides_what_a_pipeline_does(tmp_path: Path, image: np.ndarray) -> None:
    pipeline = AlbumentationsPipeline(geometry(tmp_path), "RGB")

    def boxes_of(seed: int) -> list[np.ndarray]:
        seed_all_rng(seed)
        return [run(pipeline, image)[1] for _ in range(5)]

    assert np.array_equal(boxes_of(3), boxes_of(3))
    assert not np.array_equal(boxes_of(3), boxes_of(4))
    first, *others = boxes_of(5)
    assert any(not np.array_equal(first, other) for other in others)


def test_own_rules_for_small_boxes_are_kept_and_a_single_transform_is_a_pipeline(
    tmp_path: Path, image: np.ndarray
) -> None:
    A = pytest.importorskip("albumentations")
    strict = A.Compose([A.NoOp()], bbox_params=A.BboxParams("coco", label_fields=[], min_area=1000))
    _, boxes = augment(save(strict, tmp_path / "strict.yaml"), image)
    assert ((boxes[:, 2:] > boxes[:, :2]).all(1) == [False, True, False]).all()
    square = A.Compose([A.NoOp()], bbox_params=A.BboxParams("coco", label_fields=[], max_accept_ratio=1.3))
    _, boxes = augment(save(square, tmp_path / "square.yaml"), image)
    assert ((boxes[:, 2:] > boxes[:, :2]).all(1) == [False, True, True]).all()
    flipped, boxes = augment(save(A.HorizontalFlip(p=1), tmp_path / "flip.yaml"), image)
    assert np.array_equal(flipped, image[:, ::-1])
    assert boxes[:, 0].tolist() == pytest.approx([80, 10, 95], abs=1e-4)


def test_an_image_without_boxes_goes_through(tmp_path: Path, image: np.ndarray) -> None:
    _, boxes = augment(geometry(tmp_path), image, BOXES[:0])
    assert boxes.shape == (0, 4)


def test_the_mapper_runs_the_pipeline_before_the_recipe_in_training_alone(tiny_cfg, tmp_path, image) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    tiny_cfg.INPUT.ALBUMENTATIONS = geometry(tmp_path)
    tiny_cfg.INPUT.FORMAT = "RGB"
    tiny_cfg.INPUT.MIN_SIZE_TRAIN = (100,)
    kinds = [type(x) for x in build_augmentations(tiny_cfg, is_train=True)]
    assert kinds == [AlbumentationsPipeline, T.ResizeShortestEdge, T.RandomFlip]
    assert AlbumentationsPipeline not in [type(x) for x in build_augmentations(tiny_cfg, is_train=False)]
    annotations = [
        {"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i} for i, box in enumerate(BOXES)
    ]
    record = {"file_name": str(tmp_path / "image.png"), "width": WIDTH, "height": HEIGHT, "annotations": annotations}
    mapper = DetectionMapper(tiny_cfg, is_train=True)
    numbers = set()
    for seed in range(15):
        seed_all_rng(seed)
        mapped = mapper(record)
        pixels, instances = mapped["image"].numpy().transpose(1, 2, 0), mapped["instances"]
        numbers.add(len(instances))
        visible = [channel for channel in range(3) if seen(pixels, channel)]
        assert instances.gt_classes.tolist() == visible
        for box, channel in zip(instances.gt_boxes.tensor.tolist(), visible, strict=True):
            assert box == pytest.approx(seen(pixels, channel), abs=2.5)
    assert len(numbers) > 1


def test_a_bgr_image_is_rgb_within_the_pipeline(tmp_path: Path, image: np.ndarray) -> None:
    A = pytest.importorskip("albumentations")
    file = save(A.ToGray(p=1), tmp_path / "gray.yaml")  # red, green and blue become different shades
    expected, _ = augment(file, image)
    swapped = np.ascontiguousarray(image[..., ::-1])
    assert np.array_equal(run(AlbumentationsPipeline(file, "BGR"), swapped)[0], expected)
    assert not np.array_equal(augment(file, swapped)[0], expected)
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'L'"):
        AlbumentationsPipeline(file, "L")


def test_a_pipeline_that_fails_on_a_large_image_is_an_error_when_it_is_loaded(tmp_path: Path) -> None:
    A = pytest.importorskip("albumentations")
    with pytest.raises(ValueError, match=r"crop\.yaml fails on an image of 2048 x 2048: .*\. Correct"):
        AlbumentationsPipeline(save(A.RandomCrop(5000, 70, p=1), tmp_path / "crop.yaml"), "RGB")


def test_images_that_a_pipeline_fails_on_stay_as_they_are_with_a_warning_from_the_first(
    tmp_path: Path, image: np.ndarray, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dynamic_sparse_rcnn"), "propagate", True)
    A = pytest.importorskip("albumentations")
    pipeline = AlbumentationsPipeline(save(A.RandomCrop(50, 70, p=1), tmp_path / "crop.yaml"), "RGB")
    for _ in range(3):
        assert np.array_equal(run(pipeline, image[:10])[0], image[:10])
    assert run(pipeline, image)[0].shape == (50, 70, 3)
    (warning,) = {r.getMessage() for r in caplog.records}  # not one for each of a million images
    assert ": 1 images were not augmented in this process; the last, of 120 x 10: " in warning


@pytest.mark.filterwarnings("ignore:Got processor for bboxes:UserWarning")
def test_pipelines_that_normalize_are_told_not_to(tmp_path: Path) -> None:
    A = pytest.importorskip("albumentations")
    file = save(A.Compose([A.Normalize()]), tmp_path / "p.yaml")
    with pytest.raises(ValueError, match=r"\(2048, 2048, 3\) float32 instead of .* remove normalization"):
        AlbumentationsPipeline(file, "RGB")


def test_a_missing_library_file_or_pipeline_is_named_with_the_remedy(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("albumentations")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml, which does not exist"):
        AlbumentationsPipeline(str(tmp_path / "none.yaml"), "RGB")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list\.yaml is not an Albumentations pipeline .*albumentations\.save"):
        AlbumentationsPipeline(str(tmp_path / "list.yaml"), "RGB")


def test_without_albumentations_the_error_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ImportError, match=r"INPUT\.ALBUMENTATIONS is 'p\.yaml'.*pip install '\.\[albumentations\]'"):
        AlbumentationsPipeline("p.yaml", "RGB")
