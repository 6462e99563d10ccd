"""A plain Sparse R-CNN, for comparison: written from its description (arXiv 2011.12450), one thing after the other.

As public implementations work: attention gives its weights too, each
stage and image has its own matching costs and its own copy to the host, each stage its own losses. It shares all
weights with a detector of this project, whose losses and detections it therefore has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import giou_loss, sigmoid_focal_loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

from dynamic_sparse_rcnn import (
    ClassLoss,
    DynamicHead,
    DynamicStage,
    HungarianMatcher,
    LearnedProposalGenerator,
    LossTerm,
    SetCriterion,
    SparseRCNN,
)


class PlainProposals(nn.Module):
    """The learned proposals, scaled to each image."""

    def __init__(self, generator: LearnedProposalGenerator) -> None:
        super().__init__()
        self.boxes = generator.init_proposal_boxes
        self.features = generator.init_proposal_features

    def forward(self, image_sizes: list[tuple[int, int]]) -> tuple[list[Tensor], Tensor]:
        """(P, 4) boxes of each image, absolute XYXY pixels, and (B, P, C) features."""
        boxes = box_convert(self.boxes.weight, "cxcywh", "xyxy")
        scaled = [boxes * torch.tensor([w, h, w, h], dtype=boxes.dtype).to(boxes.device) for h, w in image_sizes]
        return scaled, self.features.weight[None].repeat(len(image_sizes), 1, 1)


class PlainHead(nn.Module):
    """The cascade, whose stages pool one after the other."""

    def __init__(self, head: DynamicHead) -> None:
        super().__init__()
        self.in_features = head.in_features
        self.stages = head.head_series
        self.box_transform = head.box_transform
        self.pooler = head.box_pooler

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], proposal_features: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits (B, P, K) and boxes (B, P, 4) of each stage."""
        maps = [features[name] for name in self.in_features]
        outputs = []
        for stage in self.stages:
            pooled = self.pooler(maps, [Boxes(image_boxes) for image_boxes in boxes])
            logits, deltas, proposal_features = _run_stage(stage, proposal_features, pooled)
            refined = self.box_transform.apply_deltas(deltas.flatten(0, 1), torch.cat(boxes)).view_as(deltas)
            outputs.append((logits, refined))
            boxes = list(refined.detach())
        return outputs


def _run_stage(stage: nn.Module, features: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, P, C) features and (B * P, C, R, R) RoI features to logits, deltas and the next features."""
    assert isinstance(stage, DynamicStage)
    attended, _ = stage.self_attn(features, features, features)
    features = stage.norm1(features + stage.dropout(attended))
    interacted = _interact(stage, features.flatten(0, 1), pooled).view_as(features)
    features = stage.norm2(features + stage.dropout(interacted))
    transformed = stage.linear2(stage.dropout(stage.activation(stage.linear1(features))))
    features = stage.norm3(features + stage.dropout(transformed))
    for_class, for_box = features, features
    for layer in stage.cls_module:
        for_class = layer(for_class)
    for layer in stage.reg_module:
        for_box = layer(for_box)
    return stage.class_logits(for_class), stage.bboxes_delta(for_box), features


def _interact(stage: DynamicStage, features: Tensor, pooled: Tensor) -> Tensor:
    """The dynamic convolution: two matrix products an RoI, with matrices made of its proposal's (B * P, C) feature."""
    layers = stage.inst_interact
    channels, hidden = layers.channels, layers.dynamic_channels
    parameters = layers.dynamic_layer(features)
    first = parameters[:, : channels * hidden].view(-1, channels, hidden)
    second = parameters[:, channels * hidden :].view(-1, hidden, channels)
    cells = pooled.flatten(2).permute(0, 2, 1)
    cells = F.relu(layers.norm1(torch.bmm(cells, first)))
    cells = F.relu(layers.norm2(torch.bmm(cells, second)))
    return F.relu(layers.norm3(layers.out_layer(cells.flatten(1))))


@dataclass(frozen=True)
class Weights:
    """Of the losses, which are those of the matching costs too, and the focal loss's parameters."""

    classes: float
    l1: float
    giou: float
    alpha: float
    gamma: float

    @classmethod
    def of(cls, criterion: SetCriterion) -> Weights:
        """Those of a criterion with the usual losses."""
        losses = {term.name: term for term in criterion.losses if isinstance(term, LossTerm)}
        classes = losses["loss_ce"]
        assert isinstance(classes, ClassLoss)
        return cls(classes.weight, losses["loss_bbox"].weight, losses["loss_giou"].weight, classes.alpha, classes.gamma)


class PlainMatcher(nn.Module):
    """Hungarian matching of one image."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, target: Instances, size: Tensor) -> tuple[Tensor, Tensor]:
        """(P, K) logits and (P, 4) boxes to the indices of the matched proposals and of their ground truths."""
        w = self.weights
        wanted, classes = target.gt_boxes.tensor, target.gt_classes
        probability = logits.float().sigmoid()
        positive = w.alpha * (1 - probability) ** w.gamma * -(probability + 1e-8).log()
        negative = (1 - w.alpha) * probability**w.gamma * -(1 - probability + 1e-8).log()
        cost = w.classes * (positive - negative)[:, classes]
        cost = cost + w.l1 * torch.cdist(boxes / size, wanted / size, p=1)
        cost = cost - w.giou * generalized_box_iou(boxes, wanted)
        proposals, ground_truths = linear_sum_assignment(cost.cpu())
        return torch.as_tensor(proposals, device=boxes.device), torch.as_tensor(ground_truths, device=boxes.device)


class PlainCriterion(nn.Module):
    """The losses, stage by stage."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights
        self.matcher = PlainMatcher(weights)

    def forward(self, outputs: list[tuple[Tensor, Tensor]], targets: list[Instances]) -> dict[str, Tensor]:
        """Weighted losses by the names of the project's."""
        count = torch.tensor([sum(len(x) for x in targets)], dtype=torch.float, device=outputs[0][0].device)
        normalizer = count.clamp(min=1).item()
        losses = {}
        for stage, (logits, boxes) in enumerate(outputs):
            suffix = "" if stage == len(outputs) - 1 else f"_{stage}"
            for name, loss in self._losses(logits, boxes, targets).items():
                losses[name + suffix] = loss / normalizer
        return losses

    def _losses(self, logits: Tensor, boxes: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        w = self.weights
        wanted_classes = torch.zeros_like(logits, dtype=torch.float)
        matched_boxes, wanted_boxes, sizes = [], [], []
        for image, target in enumerate(targets):
            height, width = target.image_size
            size = torch.tensor([width, height, width, height], dtype=torch.float).to(boxes.device)
            proposals, ground_truths = self.matcher(logits[image], boxes[image], target, size)
            wanted_classes[image, proposals, target.gt_classes[ground_truths]] = 1
            matched_boxes.append(boxes[image, proposals])
            wanted_boxes.append(target.gt_boxes.tensor[ground_truths])
            sizes.append(size.expand(len(proposals), -1))
        found, wanted, size = torch.cat(matched_boxes), torch.cat(wanted_boxes), torch.cat(sizes)
        focal = sigmoid_focal_loss(logits.float(), wanted_classes, w.alpha, w.gamma, "sum")
        return {
            "loss_ce": w.classes * focal,
            "loss_bbox": w.l1 * F.l1_loss(found / size, wanted / size, reduction="sum"),
            "loss_giou": w.giou * giou_loss(found, wanted, reduction="sum"),
        }


class PlainSparseRCNN(nn.Module):
    """The detector; in training it gives losses, else detections, as detectron2's do."""

    def __init__(self, detector: SparseRCNN) -> None:
        """
        Args:
            detector: whose modules it has: a static one, of all stages supervised.

        Raises:
            ValueError: the detector has dynamic proposals or label assignment, NMS, or another pooling.
        """
        super().__init__()
        criterion, pooler = detector.criterion, detector.head.box_pooler
        if (
            not isinstance(detector.proposal_generator, LearnedProposalGenerator)
            or not isinstance(criterion, SetCriterion)
            or not isinstance(criterion.matcher, HungarianMatcher)
            or not criterion.deep_supervision
            or detector.nms_threshold < 1
            or not pooler.level_poolers[0].aligned
        ):
            raise ValueError("the plain Sparse R-CNN is static: learned proposals, Hungarian matching, ROIAlignV2")
        self.backbone = detector.backbone
        self.proposal_generator = PlainProposals(detector.proposal_generator)
        self.head = PlainHead(detector.head)
        self.criterion = PlainCriterion(Weights.of(criterion))
        self.num_detections = detector.num_detections
        self.register_buffer("pixel_mean", detector.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", detector.pixel_std, persistent=False)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As ``SparseRCNN.forward``."""
        images = self.preprocess_image(batched_inputs)
        outputs = self.predict(images)
        if self.training:
            return self.criterion(outputs, [x["instances"].to(images.tensor.device) for x in batched_inputs])
        detections = self.detect(outputs, images.image_sizes)
        return [
            {"instances": detector_postprocess(x, inputs["height"], inputs["width"])}
            for x, inputs in zip(detections, batched_inputs, strict=True)
        ]

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalizes the images and pads them to a batch."""
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        images = [(x["image"].to(mean.device) - mean) / std for x in batched_inputs]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def predict(self, images: ImageList) -> list[tuple[Tensor, Tensor]]:
        """Logits and boxes of each stage."""
        features = self.backbone(images.tensor)
        boxes, proposal_features = self.proposal_generator(images.image_sizes)
        outputs: list[tuple[Tensor, Tensor]] = self.head(features, boxes, proposal_features)
        return outputs

    def detect(self, outputs: list[tuple[Tensor, Tensor]], image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """The best-scored pairs of proposal and class, image by image."""
        detections = []
        for logits, boxes, size in zip(*outputs[-1], image_sizes, strict=True):
            scores, index = logits.float().sigmoid().flatten().topk(min(self.num_detections, logits.numel()))
            found = Boxes(boxes[index // logits.shape[1]])
            found.clip(size)
            detections.append(Instances(size, pred_boxes=found, scores=scores, pred_classes=index % logits.shape[1]))
        return detections
