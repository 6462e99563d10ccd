"""Figures of the cascade, of label assignment and of dynamic proposals, as (H, W, 3) uint8 RGB arrays."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .drawing import GRAY, Image, distinct_colors, draw_boxes, draw_on, to_numpy, with_caption
from .figures import image_grid

_STAGES_A_ROW = 4


def draw_proposal_stages(
    image_rgb: Image, stage_boxes: Tensor, stage_scores: Tensor, highlighted: Sequence[int]
) -> Image:
    """Draws the proposals after each stage in a panel of its own, to show how they are refined.

    A highlighted proposal has the same color in every panel, labeled with its score; the others are gray.

    Args:
        image_rgb: (H, W, 3) uint8.
        stage_boxes: (S+1, P, 4) absolute xyxy pixels of this image; row 0 holds the initial proposals.
        stage_scores: (S, P) score of each proposal after each stage.
        highlighted: indices of the proposals to follow.

    Returns:
        (H', W', 3) uint8.
    """
    panels = [
        with_caption(
            draw_proposals(image_rgb, boxes, highlighted, stage_scores[stage - 1] if stage else None),
            f"stage {stage}" if stage else "proposals",
        )
        for stage, boxes in enumerate(stage_boxes)
    ]
    return image_grid(panels, columns=_STAGES_A_ROW)


def draw_proposals(image_rgb: Image, boxes: Tensor, highlighted: Sequence[int], scores: Tensor | None) -> Image:
    """Draws one panel of :func:`draw_proposal_stages`, without its caption.

    Args:
        image_rgb: (H, W, 3) uint8.
        boxes: (P, 4) absolute xyxy pixels of this image.
        highlighted: indices of the proposals to draw in color.
        scores: (P,), the labels of the highlighted ones; None: they have none.

    Returns:
        (H', W', 3) uint8.
    """
    others = sorted(set(range(len(boxes))) - set(highlighted))
    panel = draw_on(image_rgb, boxes[others], [GRAY] * len(others), opacity=0.35)
    labels = [f"{score:.2f}" for score in scores[list(highlighted)].tolist()] if scores is not None else ()
    scale = panel.shape[1] / image_rgb.shape[1]
    return draw_boxes(panel, to_numpy(boxes[list(highlighted)]) * scale, distinct_colors(len(highlighted)), labels)


def draw_assignment(image_rgb: Image, gt_boxes: Tensor, stage_boxes: Tensor, gt_index: Tensor, caption: str) -> Image:
    """Draws which proposals of each stage learn from which ground truth, in a panel for each stage.

    A ground truth, which has a label, and the proposals that learn from it share a color; those that
    learn to be background are gray.

    Args:
        image_rgb: (H, W, 3) uint8.
        gt_boxes: (G, 4) absolute xyxy pixels of this image.
        stage_boxes: (S, P, 4) likewise, predictions of each stage.
        gt_index: (S, P) int64 in [0, G), or -1 for background.
        caption: stands before the stage's number and positives.

    Returns:
        (H', W', 3) uint8, one row of S panels.
    """
    panels = []
    for stage, (boxes, indices) in enumerate(zip(stage_boxes, gt_index, strict=True), 1):
        panel = draw_assigned(image_rgb, gt_boxes, boxes, indices)
        panels.append(with_caption(panel, f"{caption}, stage {stage}: {int((indices >= 0).sum())} positive"))
    return image_grid(panels, columns=len(panels))


def draw_assigned(image_rgb: Image, gt_boxes: Tensor, boxes: Tensor, gt_index: Tensor) -> Image:
    """Draws one panel of :func:`draw_assignment`, without its caption.

    Args:
        image_rgb: (H, W, 3) uint8.
        gt_boxes: (G, 4) absolute xyxy pixels of this image.
        boxes: (P, 4) likewise, predictions of one stage.
        gt_index: (P,) int64 in [0, G), or -1 for background.

    Returns:
        (H', W', 3) uint8.
    """
    colors = distinct_colors(len(gt_boxes))
    background, positive = boxes[gt_index < 0], gt_index[gt_index >= 0].tolist()
    panel = draw_on(image_rgb, background, [GRAY] * len(background), opacity=0.25)
    scale = panel.shape[1] / image_rgb.shape[1]
    panel = draw_boxes(panel, to_numpy(boxes[gt_index >= 0]) * scale, [colors[index] for index in positive])
    labels = [f"learned by {positive.count(index)}" for index in range(len(gt_boxes))]
    return draw_boxes(panel, to_numpy(gt_boxes) * scale, colors, labels)


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
    """
    colors = distinct_colors(len(mixed_boxes))
    weights, strongest = expert_weights.max(1)
    labels = [f"{e + 1}: {w:.0%}" for e, w in zip(strongest.tolist(), weights.tolist(), strict=True)]
    panels = [
        with_caption(draw_on(image_rgb, boxes, colors), f"expert {number}")
        for number, boxes in enumerate(expert_boxes, 1)
    ]
    panels.append(with_caption(draw_on(image_rgb, mixed_boxes, colors, labels), caption))
    return image_grid(panels, columns=len(panels))
