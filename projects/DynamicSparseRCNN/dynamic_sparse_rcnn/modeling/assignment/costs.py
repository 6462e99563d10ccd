"""The cost of making a proposal learn from a ground truth, for all stages and images at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..structures import BatchedTargets, MatchCosts, StagePredictions


def box_iou_and_giou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and its generalised form (arXiv 1902.09630), with broadcasting.

    torchvision compares all boxes of one set with all of another; this compares any shapes that
    broadcast, which serves whole batches of pairs, and gives 0 instead of NaN for empty boxes.

    Args:
        boxes: (..., 4) absolute XYXY.
        others: (..., 4) absolute XYXY, broadcastable to ``boxes``.

    Returns:
        IoU in [0, 1] and GIoU in [-1, 1], both of the broadcast shape without the last dimension.
    """
    # One tensor a coordinate: arithmetic on pairs in the last dimension is several times slower.
    left, top, right, bottom = boxes.unbind(-1)
    other_left, other_top, other_right, other_bottom = others.unbind(-1)
    width = torch.min(right, other_right) - torch.max(left, other_left)
    height = torch.min(bottom, other_bottom) - torch.max(top, other_top)
    intersection = width.clamp(min=0) * height.clamp(min=0)
    areas = (right - left) * (bottom - top), (other_right - other_left) * (other_bottom - other_top)
    union = areas[0] + areas[1] - intersection
    hull_width = torch.max(right, other_right) - torch.min(left, other_left)
    hull_area = hull_width * (torch.max(bottom, other_bottom) - torch.min(top, other_top))
    tiny = torch.finfo(union.dtype).tiny
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull_area - union) / hull_area.clamp(min=tiny)


class MatchCostModel(nn.Module):
    """Weighted sum of classification, L1 and GIoU cost (Sparse R-CNN, section 3.3; as in DETR).

    The classification cost is the focal loss of calling the proposal the ground truth's class, minus
    that of calling it background. Hence background costs 0, for every matcher.
    """

    @configurable
    def __init__(
        self,
        *,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        focal_alpha: float,
        focal_gamma: float,
    ) -> None:
        super().__init__()
        if class_weight == l1_weight == giou_weight == 0:
            raise ValueError("at least one of CLASS_WEIGHT, L1_WEIGHT and GIOU_WEIGHT must not be 0")
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        node = cfg.MODEL.SparseRCNN
        return {
            "class_weight": node.CLASS_WEIGHT,
            "l1_weight": node.L1_WEIGHT,
            "giou_weight": node.GIOU_WEIGHT,
            "focal_alpha": node.ALPHA,
            "focal_gamma": node.GAMMA,
        }

    @torch.no_grad()
    def forward(self, predictions: StagePredictions, targets: BatchedTargets) -> MatchCosts:
        """Computes all costs in float32, under autocast too."""
        with torch.autocast(predictions.boxes.device.type, enabled=False):
            boxes = predictions.boxes.float()
            iou, giou = box_iou_and_giou(boxes[:, :, :, None], targets.boxes[None, :, None])
            cost = self.class_weight * self._class_cost(predictions.logits.float(), targets.classes)
            cost += self.l1_weight * self._l1_cost(boxes, targets)
            cost -= self.giou_weight * giou
        return MatchCosts(cost, iou, targets.valid)

    def _class_cost(self, logits: Tensor, classes: Tensor) -> Tensor:
        """(S, B, P, K) logits and (B, G) classes to the (S, B, P, G) focal cost relative to background."""
        stages, _, proposals, _ = logits.shape
        index = classes[None, :, None].expand(stages, -1, proposals, -1)
        logit = logits.gather(-1, index)
        probability = logit.sigmoid()
        positive = self.focal_alpha * (1 - probability) ** self.focal_gamma * F.softplus(-logit)
        negative = (1 - self.focal_alpha) * probability**self.focal_gamma * F.softplus(logit)
        return positive - negative

    @staticmethod
    def _l1_cost(boxes: Tensor, targets: BatchedTargets) -> Tensor:
        """(S, B, P, G) sum of the four coordinates' distances, in units of the image's width and height."""
        stages, images, proposals, _ = boxes.shape
        relative = boxes / targets.image_whwh[:, None]
        relative_targets = (targets.boxes / targets.image_whwh[:, None]).expand(stages, -1, -1, -1)
        distance = torch.cdist(relative.flatten(0, 1), relative_targets.flatten(0, 1), p=1)
        return distance.view(stages, images, proposals, -1)
