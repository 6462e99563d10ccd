"""Pictures of what a detector does, as (H,W,3) uint8 RGB arrays; nothing opens a window."""

from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

from .drawing import GREY, Image, distinct_colours, draw_boxes, readable_scale, resized, to_numpy, with_caption

_STAGES_A_ROW = 4
_GAP = 6
_WHITE = 255


def draw_detections_beside_ground_truth(
    image_rgb: Image,
    ground_truth: Instances,
    detections: Instances,
    class_names: Sequence[str],
    score_threshold: float = 0.3,
    scale: float | None = None,
) -> Image:
    """Draws the annotated boxes in a left panel and the detected ones in a right, with one colour a class.

    Args:
        image_rgb: (H,W,3) uint8.
        ground_truth: ``gt_boxes`` (absolute xyxy pixels of this image) and ``gt_classes``.
        detections: ``pred_boxes`` (absolute xyxy pixels of this image), ``scores`` and ``pred_classes``.
        class_names: the name of every class.
        score_threshold: detections with a lower score are left out.
        scale: size of a panel relative to the image; by default small images are enlarged.

    Returns:
        (H',W',3) uint8.

    Raises:
        ValueError: the image has another shape or type, or a class has no name.
    """
    _check_image(image_rgb)
    detections = detections[detections.scores >= score_threshold]
    detections = detections[detections.scores.argsort()]  # the best are drawn last, over the others
    true_classes, found_classes = ground_truth.gt_classes.tolist(), detections.pred_classes.tolist()
    _check_classes([*true_classes, *found_classes], class_names)
    colours = distinct_colours(len(class_names))
    scale = scale or readable_scale(image_rgb)
    found_labels = [
        f"{class_names[index]} {score:.0%}"
        for index, score in zip(found_classes, detections.scores.tolist(), strict=True)
    ]
    panels = []
    for caption, boxes, classes, labels in (
        ("ground truth", ground_truth.gt_boxes, true_classes, [class_names[i] for i in true_classes]),
        (f"detections (score >= {score_threshold:g})", detections.pred_boxes, found_classes, found_labels),
    ):
        canvas = Visualizer(resized(image_rgb, scale))
        draw_boxes(canvas, to_numpy(boxes.tensor) * scale, [colours[i] for i in classes], labels)
        panels.append(with_caption(canvas.output.get_image(), f"{caption}: {len(classes)}"))
    return image_grid(panels, columns=2)


def draw_annotations(
    image_rgb: Image, annotations: Instances, class_names: Sequence[str], caption: str, longest_side: int
) -> Image:
    """Draws annotated boxes, each with the name and colour of its class; crowd regions in grey.

    Args:
        image_rgb: (H,W,3) uint8.
        annotations: ``gt_boxes`` (absolute xyxy pixels of this image), ``gt_classes``, perhaps ``gt_is_crowd``.
        class_names: the name of every class.
        caption: stands above, before the number of boxes.
        longest_side: of the panel without caption, in pixels.

    Returns:
        (H',W',3) uint8.

    Raises:
        ValueError: the image has another shape or type, or a class has no name.
    """
    _check_image(image_rgb)
    classes = annotations.gt_classes.tolist()
    _check_classes(classes, class_names)
    crowd = annotations.gt_is_crowd.tolist() if annotations.has("gt_is_crowd") else [False] * len(classes)
    colours = distinct_colours(len(class_names))
    scale = longest_side / max(image_rgb.shape[:2])
    canvas = Visualizer(resized(image_rgb, scale))
    draw_boxes(
        canvas,
        to_numpy(annotations.gt_boxes.tensor) * scale,
        [GREY if is_crowd else colours[i] for i, is_crowd in zip(classes, crowd, strict=True)],
        [
            f"crowd of {class_names[i]}" if is_crowd else class_names[i]
            for i, is_crowd in zip(classes, crowd, strict=True)
        ],
    )
    return with_caption(canvas.output.get_image(), f"{caption}: {len(classes)}")


def draw_proposal_stages(
    image_rgb: Image,
    stage_boxes: Tensor,
    stage_scores: Tensor,
    highlighted: Sequence[int],
) -> Image:
    """Draws the proposals after each stage in a panel of its own, to show how they are refined.

    A highlighted proposal has the same colour in every panel, labelled with its score; the others are grey.

    Args:
        image_rgb: (H,W,3) uint8.
        stage_boxes: (S+1,P,4) absolute xyxy pixels of this image; row 0 holds the initial proposals.
        stage_scores: (S,P) score of each proposal after each stage.
        highlighted: indices of the proposals to follow.

    Returns:
        (H',W',3) uint8.

    Raises:
        ValueError: the image or the tensors have other shapes, or an index is out of range.
    """
    _check_image(image_rgb)
    _check_stages(stage_boxes, stage_scores, highlighted)
    scale = readable_scale(image_rgb)
    enlarged = resized(image_rgb, scale)
    colours = distinct_colours(len(highlighted))
    scores = to_numpy(stage_scores)
    panels = []
    for stage, boxes in enumerate(to_numpy(stage_boxes) * scale):
        canvas = Visualizer(enlarged)
        for index in set(range(len(boxes))) - set(highlighted):
            canvas.draw_box(boxes[index], alpha=0.35, edge_color=GREY)
        labels = [f"{scores[stage - 1, index]:.2f}" if stage else "" for index in highlighted]
        draw_boxes(canvas, boxes[list(highlighted)], colours, labels)
        panels.append(with_caption(canvas.output.get_image(), f"stage {stage}" if stage else "proposals"))
    return image_grid(panels, columns=_STAGES_A_ROW)


def draw_assignment(image_rgb: Image, gt_boxes: Tensor, stage_boxes: Tensor, gt_index: Tensor, caption: str) -> Image:
    """Draws which proposals of each stage learn from which ground truth, in a panel a stage.

    A ground truth, which has a label, and the proposals that learn from it share a colour; those that
    learn to be background are grey.

    Args:
        image_rgb: (H,W,3) uint8.
        gt_boxes: (G,4) absolute xyxy pixels of this image.
        stage_boxes: (S,P,4) likewise, predictions of each stage.
        gt_index: (S,P) int64 in [0, G), or -1 for background.
        caption: stands before the stage's number and positives.

    Returns:
        (H',W',3) uint8, one row of S panels.

    Raises:
        ValueError: the image or the tensors have other shapes.
    """
    _check_image(image_rgb)
    if gt_boxes.shape[1:] != (4,) or stage_boxes.shape != (*gt_index.shape, 4):
        raise ValueError(
            f"gt_boxes must be (G,4), stage_boxes (S,P,4) and gt_index (S,P), "
            f"got {tuple(gt_boxes.shape)}, {tuple(stage_boxes.shape)} and {tuple(gt_index.shape)}"
        )
    scale = readable_scale(image_rgb)
    enlarged = resized(image_rgb, scale)
    colours = distinct_colours(len(gt_boxes))
    panels = []
    for stage, (boxes, indices) in enumerate(zip(to_numpy(stage_boxes) * scale, gt_index.tolist(), strict=True), 1):
        canvas = Visualizer(enlarged)
        # Background first, so that it hides nothing.
        for box, index in sorted(zip(boxes, indices, strict=True), key=lambda pair: pair[1]):
            canvas.draw_box(box, alpha=1.0 if index >= 0 else 0.25, edge_color=colours[index] if index >= 0 else GREY)
        counts = [indices.count(index) for index in range(len(gt_boxes))]
        draw_boxes(canvas, to_numpy(gt_boxes) * scale, colours, [f"learned by {count}" for count in counts])
        panels.append(with_caption(canvas.output.get_image(), f"{caption}, stage {stage}: {sum(counts)} positive"))
    return image_grid(panels, columns=len(panels))


def draw_expert_proposals(
    image_rgb: Image, expert_boxes: Tensor, mixed_boxes: Tensor, expert_weights: Tensor, caption: str = "mixed"
) -> Image:
    """Draws each expert's boxes in a panel of its own, and in the last what is mixed from them for this image.

    A proposal has the same colour in all panels; where it is mixed, its label is its strongest expert's number and
    weight.

    Args:
        image_rgb: (H,W,3) uint8.
        expert_boxes: (E,P,4) absolute xyxy pixels of this image.
        mixed_boxes: (P,4) likewise.
        expert_weights: (P,E), which add up to 1 for each proposal.
        caption: of the last panel.

    Returns:
        (H',W',3) uint8, one row of E + 1 panels.

    Raises:
        ValueError: the image or the tensors have other shapes.
    """
    _check_image(image_rgb)
    experts, proposals = expert_boxes.shape[:2]
    if expert_boxes.shape[2:] != (4,) or mixed_boxes.shape != (proposals, 4):
        raise ValueError(
            f"expert_boxes must be (E,P,4) and mixed_boxes (P,4), "
            f"got {tuple(expert_boxes.shape)} and {tuple(mixed_boxes.shape)}"
        )
    if expert_weights.shape != (proposals, experts):
        raise ValueError(f"expert_weights must be {(proposals, experts)}, got {tuple(expert_weights.shape)}")
    scale = readable_scale(image_rgb)
    enlarged = resized(image_rgb, scale)
    colours = distinct_colours(proposals)
    weights, strongest = expert_weights.max(1)
    labels = [f"{e + 1}: {w:.0%}" for e, w in zip(strongest.tolist(), weights.tolist(), strict=True)]
    panels = []
    captions = [*(f"expert {number}" for number in range(1, experts + 1)), caption]
    for text, boxes in zip(captions, [*expert_boxes, mixed_boxes], strict=True):
        canvas = Visualizer(enlarged)
        draw_boxes(canvas, to_numpy(boxes) * scale, colours, labels if boxes is mixed_boxes else [""] * proposals)
        panels.append(with_caption(canvas.output.get_image(), text))
    return image_grid(panels, columns=len(panels))


def image_grid(images: Sequence[Image], columns: int) -> Image:
    """Puts images side by side, ``columns`` a row, on white; smaller ones at the top left of their cell.

    Raises:
        ValueError: there is no image or no column, or an image has another shape or type than (H,W,3) uint8.
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


def _check_image(image: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image must be (H,W,3) uint8, got {image.shape} {image.dtype}")


def _check_classes(classes: Iterable[int], class_names: Sequence[str]) -> None:
    unnamed = sorted({index for index in classes if not 0 <= index < len(class_names)})
    if unnamed:
        raise ValueError(f"classes {unnamed} have no name: class_names has {len(class_names)} entries")


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
