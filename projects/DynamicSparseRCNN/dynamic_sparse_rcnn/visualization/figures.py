"""Figures of what a detector does, as (H, W, 3) uint8 RGB arrays; nothing opens a window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.structures import Instances

from .drawing import GRAY, Image, check_image, distinct_colors, draw_on, with_caption
from .text import drawable_names

_LEAST_SCORE = 0.3
_GAP = 6
_WHITE = 255


def draw_detections(
    image_rgb: Image, detections: Instances, class_names: Sequence[str], scale: float | None = None
) -> Image:
    """Draws detections, each with its class name, score and the color of its class; the best over the others.

    Args:
        image_rgb: (H, W, 3) uint8.
        detections: ``pred_boxes`` (absolute xyxy pixels of this image), ``scores`` and ``pred_classes``,
            perhaps ``track_ids`` (-1: none).
        class_names: the name of every class.
        scale: size of the figure relative to the image; by default small images are enlarged.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: the image has another shape or type, or a class has no name.
    """
    detections = detections[detections.scores.argsort()]
    classes = detections.pred_classes.tolist()
    names = _names_of(classes, class_names)
    labels = [f"{name} {score:.0%}" for name, score in zip(names, detections.scores.tolist(), strict=True)]
    if detections.has("track_ids"):
        tracks = detections.track_ids.tolist()
        labels = [f"#{t} {label}" if t >= 0 else label for t, label in zip(tracks, labels, strict=True)]
    return draw_on(image_rgb, detections.pred_boxes.tensor, _colors_of(classes, class_names), labels, scale)


def draw_detections_beside_ground_truth(
    image_rgb: Image,
    ground_truth: Instances,
    detections: Instances,
    class_names: Sequence[str],
) -> Image:
    """Draws the annotated boxes in a left panel and the detected ones in a right, with one color for each class.

    Detections with a score below 0.3 are left out.

    Args:
        image_rgb: (H, W, 3) uint8.
        ground_truth: ``gt_boxes`` (absolute xyxy pixels of this image) and ``gt_classes``.
        detections: ``pred_boxes`` (absolute xyxy pixels of this image), ``scores`` and ``pred_classes``.
        class_names: the name of every class.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: the image has another shape or type, or a class has no name.
    """
    found = detections[detections.scores >= _LEAST_SCORE]
    right = draw_detections(image_rgb, found, class_names)
    return image_grid(
        [
            draw_annotations(image_rgb, ground_truth, class_names, "ground truth"),
            with_caption(right, f"detections (score >= {_LEAST_SCORE:g}): {len(found)}"),
        ],
        columns=2,
    )


def draw_annotations(
    image_rgb: Image, annotations: Instances, class_names: Sequence[str], caption: str, scale: float | None = None
) -> Image:
    """Draws annotated boxes, each with the name and color of its class; crowd regions in gray.

    Args:
        image_rgb: (H, W, 3) uint8.
        annotations: ``gt_boxes`` (absolute xyxy pixels of this image), ``gt_classes``, perhaps ``gt_is_crowd``.
        class_names: the name of every class.
        caption: stands above, before the number of boxes.
        scale: size of the panel relative to the image; by default small images are enlarged.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: the image has another shape or type, or a class has no name.
    """
    classes = annotations.gt_classes.tolist()
    crowd = annotations.gt_is_crowd.tolist() if annotations.has("gt_is_crowd") else [False] * len(classes)
    names, colors = _names_of(classes, class_names), _colors_of(classes, class_names)
    panel = draw_on(
        image_rgb,
        annotations.gt_boxes.tensor,
        [GRAY if is_crowd else color for color, is_crowd in zip(colors, crowd, strict=True)],
        [f"crowd of {name}" if is_crowd else name for name, is_crowd in zip(names, crowd, strict=True)],
        scale,
    )
    return with_caption(panel, f"{caption}: {len(classes)}")


def image_grid(images: Sequence[Image], columns: int) -> Image:
    """Puts images side by side, ``columns`` a row, on white; smaller ones at the top left of their cell.

    Raises:
        ValueError: there is no image or no column, or an image has another shape or type than (H, W, 3) uint8.
    """
    if not images or columns < 1:
        raise ValueError(f"image_grid needs at least 1 image and 1 column, got {len(images)} and {columns}")
    for image in images:
        check_image(image)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_height = max(image.shape[0] for image in images) + _GAP
    cell_width = max(image.shape[1] for image in images) + _GAP
    grid = np.full((rows * cell_height - _GAP, columns * cell_width - _GAP, 3), _WHITE, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * cell_height, index % columns * cell_width
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid


def _names_of(classes: Iterable[int], class_names: Sequence[str]) -> list[str]:
    """The name of each of the classes, as it can be drawn."""
    unnamed = sorted({index for index in classes if not 0 <= index < len(class_names)})
    if unnamed:
        raise ValueError(f"classes {unnamed} have no name: class_names has {len(class_names)} entries")
    drawable = drawable_names(class_names)
    return [drawable[index] for index in classes]


def _colors_of(classes: Iterable[int], class_names: Sequence[str]) -> list[tuple[int, int, int]]:
    colors = distinct_colors(len(class_names))
    return [colors[index] for index in classes]
