"""The losses of Sparse R-CNN once more: a loop over stages and images, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou

from dynamic_sparse_rcnn import StagePredictions


def focal_terms(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Focal loss (arXiv 1708.02002, eq. 5) of each logit as a positive and as a negative."""
    p = logits.sigmoid()
    return -0.25 * (1 - p) ** 2 * F.logsigmoid(logits), -0.75 * p**2 * F.logsigmoid(-logits)


def plain_losses(predictions: StagePredictions, instances: list) -> dict[str, torch.Tensor]:
    """DETR's way with Sparse R-CNN's terms, in float64: a loop over stages, in it one over images."""
    losses = {}
    stages = len(predictions.logits)
    ground_truths = max(1, sum(len(x) for x in instances))
    for stage in range(stages):
        class_loss = l1_loss = giou_loss = torch.zeros((), dtype=torch.float64)
        for image, target in enumerate(instances):
            logits = predictions.logits[stage, image].double()
            boxes = predictions.boxes[stage, image].double()
            wanted = target.gt_boxes.tensor.double()
            height, width = target.image_size
            scale = torch.tensor([width, height, width, height], dtype=torch.float64)
            positive, negative = focal_terms(logits)
            distance = torch.cdist(boxes / scale, wanted / scale, p=1)
            giou = generalized_box_iou(boxes, wanted)
            cost = 2 * (positive - negative)[:, target.gt_classes] + 5 * distance - 2 * giou
            rows, columns = map(torch.from_numpy, linear_sum_assignment(cost.detach().numpy()))
            is_positive = torch.zeros_like(logits, dtype=torch.bool)
            is_positive[rows, target.gt_classes[columns]] = True
            class_loss = class_loss + torch.where(is_positive, positive, negative).sum()
            l1_loss = l1_loss + distance[rows, columns].sum()
            giou_loss = giou_loss + (1 - giou[rows, columns]).sum()
        end = "" if stage == stages - 1 else f"_{stage}"
        losses[f"loss_ce{end}"] = 2 * class_loss / ground_truths
        losses[f"loss_bbox{end}"] = 5 * l1_loss / ground_truths
        losses[f"loss_giou{end}"] = 2 * giou_loss / ground_truths
    return losses
