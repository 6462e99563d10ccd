"""Figures of what a detector does, as (H, W, 3) uint8 RGB arrays; nothing opens a window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.structures import Instances
from torch import Tensor

from .drawing import GREY, Image, distinct_colors, draw_boxes, readable_scale, resized, to_numpy, with_caption
from .text import drawable_names

_STAGES_A_ROW = 4
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
    return _draw(image_rgb, detections.pred_boxes.tensor, _colors_of(classes, class_names), labels, scale)


def draw_detections_beside_ground_truth(
    image_rgb: Image,
    ground_truth: Instances,
    detections: Instances,
    class_names: Sequence[str],
    score_threshold: float = 0.3,
    scale: float | None = None,
) -> Image:
    """Draws the annotated boxes in a left panel and the detected ones in a right, with one color for each class.

    Args:
        image_rgb: (H, W, 3) uint8.
        ground_truth: ``gt_boxes`` (absolute xyxy pixels of this image) and ``gt_classes``.
        detections: ``pred_boxes`` (absolute xyxy pixels of this image), ``scores`` and ``pred_classes``.
        class_names: the name of every class.
        score_threshold: detections with a lower score are left out.
        scale: size of a panel relative to the image; by default small images are enlarged.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: the image has another shape or type, or a class has no name.
    """
    found = detections[detections.scores >= score_threshold]
    classes = ground_truth.gt_classes.tolist()
    names, colors = _names_of(classes, class_names), _colors_of(classes, class_names)
    left = _draw(image_rgb, ground_truth.gt_boxes.tensor, colors, names, scale)
    right = draw_detections(image_rgb, found, class_names, scale)
    return image_grid(
        [
            with_caption(left, f"ground truth: {len(classes)}"),
            with_caption(right, f"detections (score >= {score_threshold:g}): {len(found)}"),
        ],
        columns=2,
    )


def draw_annotations(
    image_rgb: Image, annotations: Instances, class_names: Sequence[str], caption: str, longest_side: int
) -> Image:
    """Draws annotated boxes, each with the name and color of its class; crowd regions in grey.

    Args:
        image_rgb: (H, W, 3) uint8.
        annotations: ``gt_boxes`` (absolute xyxy pixels of this image), ``gt_classes``, perhaps ``gt_is_crowd``.
        class_names: the name of every class.
        caption: stands above, before the number of boxes.
        longest_side: of the panel without caption, in pixels.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: the image has another shape or type, or a class has no name.
    """
    classes = annotations.gt_classes.tolist()
    crowd = annotations.gt_is_crowd.tolist() if annotations.has("gt_is_crowd") else [False] * len(classes)
    names, colors = _names_of(classes, class_names), _colors_of(classes, class_names)
    panel = _draw(
        image_rgb,
        annotations.gt_boxes.tensor,
        [GREY if is_crowd else color for color, is_crowd in zip(colors, crowd, strict=True)],
        [f"crowd of {name}" if is_crowd else name for name, is_crowd in zip(names, crowd, strict=True)],
        longest_side / max(image_rgb.shape[:2]),
    )
    return with_caption(panel, f"{caption}: {len(classes)}")


def draw_proposal_stages(
    image_rgb: Image, stage_boxes: Tensor, stage_scores: Tensor, highlighted: Sequence[int]
) -> Image:
    """Draws the proposals after each stage in a panel of its own, to show how they are refined.

    A highlighted proposal has the same color in every panel, labelled with its score; the others are grey.

    Args:
        image_rgb: (H, W, 3) uint8.
        stage_boxes: (S+1, P, 4) absolute xyxy pixels of this image; row 0 holds the initial proposals.
        stage_scores: (S, P) score of each proposal after each stage.
        highlighted: indices of the proposals to follow.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: the image or the tensors have other shapes, or an index is out of range.
    """
    _check_stages(stage_boxes, stage_scores, highlighted)
    colors = distinct_colors(len(highlighted))
    others = sorted(set(range(stage_boxes.shape[1])) - set(highlighted))
    panels = []
    for stage, boxes in enumerate(stage_boxes):
        panel = _draw(image_rgb, boxes[others], [GREY] * len(others), opacity=0.35)
        labels = [f"{stage_scores[stage - 1, index]:.2f}" if stage else "" for index in highlighted]
        scale = panel.shape[1] / image_rgb.shape[1]
        panel = draw_boxes(panel, to_numpy(boxes[list(highlighted)]) * scale, colors, labels)
        panels.append(with_caption(panel, f"stage {stage}" if stage else "proposals"))
    return image_grid(panels, columns=_STAGES_A_ROW)


def draw_assignment(image_rgb: Image, gt_boxes: Tensor, stage_boxes: Tensor, gt_index: Tensor, caption: str) -> Image:
    """Draws which proposals of each stage learn from which ground truth, in a panel for each stage.

    A ground truth, which has a label, and the proposals that learn from it share a color; those that
    learn to be background are grey.

    Args:
        image_rgb: (H, W, 3) uint8.
        gt_boxes: (G, 4) absolute xyxy pixels of this image.
        stage_boxes: (S, P, 4) likewise, predictions of each stage.
        gt_index: (S, P) int64 in [0, G), or -1 for background.
        caption: stands before the stage's number and positives.

    Returns:
        (H', W', 3) uint8, one row of S panels.

    Raises:
        ValueError: the image or the tensors have other shapes.
    """
    if gt_boxes.shape[1:] != (4,) or stage_boxes.shape != (*gt_index.shape, 4):
        raise ValueError(
            f"gt_boxes must be (G,4), stage_boxes (S,P,4) and gt_index (S,P), "
            f"got {tuple(gt_boxes.shape)}, {tuple(stage_boxes.shape)} and {tuple(gt_index.shape)}"
        )
    colors = distinct_colors(len(gt_boxes))
    panels = []
    for stage, (boxes, indices) in enumerate(zip(stage_boxes, gt_index, strict=True), 1):
        background, positive = boxes[indices < 0], indices[indices >= 0].tolist()
        panel = _draw(image_rgb, background, [GREY] * len(background), opacity=0.25)
        scale = panel.shape[1] / image_rgb.shape[1]
        panel = draw_boxes(panel, to_numpy(boxes[indices >= 0]) * scale, [colors[index] for index in positive])
        labels = [f"learned by {positive.count(index)}" for index in range(len(gt_boxes))]
        panel = draw_boxes(panel, to_numpy(gt_boxes) * scale, colors, labels)
        panels.append(with_caption(panel, f"{caption}, stage {stage}: {len(positive)} positive"))
    return image_grid(panels, columns=len(panels))


def draw_expert_proposals(
    image_rgb: Image, expert_boxes: Tensor, mixed_boxes: Tensor, expert_weights: Tensor, caption: str = "mixed"
) -> Image:
    """Draws each expert's boxes in a panel of its own, and in the last what is mixed from them for this image.

    A proposal has the same color in all panels; where it is mixed, its label is its strongest expert's number and
    weight.

    Args:
        image_rgb: (H, W, 3) uint8.
        expert_boxes: (E, P, 4) absolute xyxy pixels of this image.
        mixed_boxes: (P, 4) likewise.
        expert_weights: (P, E), which add up to 1 for each proposal.
        caption: of the last panel.

    Returns:
        (H', W', 3) uint8, one row of E + 1 panels.

    Raises:
        ValueError: the image or the tensors have other shapes.
    """
    experts, proposals = expert_boxes.shape[:2]
    if expert_boxes.shape[2:] != (4,) or mixed_boxes.shape != (proposals, 4):
        raise ValueError(
            f"expert_boxes must be (E,P,4) and mixed_boxes (P,4), "
            f"got {tuple(expert_boxes.shape)} and {tuple(mixed_boxes.shape)}"
        )
    if expert_weights.shape != (proposals, experts):
        raise ValueError(f"expert_weights must be {(proposals, experts)}, got {tuple(expert_weights.shape)}")
    colors = distinct_colors(proposals)
    weights, strongest = expert_weights.max(1)
    labels = [f"{e + 1}: {w:.0%}" for e, w in zip(strongest.tolist(), weights.tolist(), strict=True)]
    panels = [
        with_caption(_draw(image_rgb, boxes, colors), f"expert {number}")
        for number, boxes in enumerate(expert_boxes, 1)
    ]
    panels.append(with_caption(_draw(image_rgb, mixed_boxes, colors, labels), caption))
    return image_grid(panels, columns=len(panels))


def image_grid(images: Sequence[Image], columns: int) -> Image:
    """Puts images side by side, ``columns`` a row, on white; smaller ones at the top left of their cell.

    Raises:
        ValueError: there is no image or no column, or an image has another shape or type than (H, W, 3) uint8.
    """
    if not images or columns < 1:
        raise ValueError(f"image_grid needs at least 1 image and 1 column, got {len(images)} and {columns}")
    for image in images:
        _check_image(image)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_height = max(image.shape[0] for image in images) + _GAP
    cell_width = max(image.shape[1] for image in images) + _GAP
    grid = np.full((rows * cell_height - _GAP, columns * cell_width - _GAP, 3), _WHITE, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * cell_height, index % columns * cell_width
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid


def _draw(
    image: Image,
    boxes: Tensor,
    colors: Sequence[tuple[int, int, int]],
    labels: Sequence[str] = (),
    scale: float | None = None,
    opacity: float = 1.0,
) -> Image:
    """:func:`draw_boxes` on the checked image, ``scale`` times as large, with boxes in pixels of the original one."""
    _check_image(image)
    scale = scale or readable_scale(image)
    return draw_boxes(resized(image, scale), to_numpy(boxes) * scale, colors, labels, opacity)


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


def _check_image(image: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image must be (H,W,3) uint8, got {image.shape} {image.dtype}")


def _check_stages(stage_boxes: Tensor, stage_scores: Tensor, highlighted: Sequence[int]) -> None:
    num_proposals = stage_scores.shape[-1]
    if stage_scores.ndim != 2 or stage_boxes.shape != (len(stage_scores) + 1, num_proposals, 4):
        raise ValueError(
            f"stage_boxes must be (S+1,P,4) and stage_scores (S,P), "
            f"got {tuple(stage_boxes.shape)} and {tuple(stage_scores.shape)}"
        )
    outside = [index for index in highlighted if not 0 <= index < num_proposals]
    if outside:
        raise ValueError(f"highlighted proposals {outside} are out of range: there are {num_proposals}")
