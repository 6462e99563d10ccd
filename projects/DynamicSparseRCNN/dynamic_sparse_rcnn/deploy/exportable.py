"""The detector as one function of tensors, which can be exported."""

from __future__ import annotations

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..modeling.detector import NMS_CANDIDATES, DynamicSparseRCNN, SparseRCNN
from ..modeling.head.head import DynamicHead
from ..modeling.proposals.dynamic import DynamicProposalGenerator
from ..modeling.proposals.learned import LearnedProposalGenerator
from .operators import Suppression

#: Names of what goes in and comes out, in their order.
INPUT_NAMES = ("images", "image_sizes", "original_sizes")
OUTPUT_NAMES = ("boxes", "scores", "classes")
#: The class in rows that hold no detection.
NO_CLASS = -1


class ExportableDetector(nn.Module):
    """A detector from pixels to detections in the original image; shares the parts of the one it is made of."""

    def __init__(self, detector: nn.Module, suppression: Suppression | None) -> None:
        """
        Args:
            detector: a Sparse R-CNN, in evaluation mode.
            suppression: how boxes that overlap are dropped; None: none is, and the best candidates of which NMS would
                choose come out.

        Raises:
            ValueError: a part of the detector cannot be exported; names it.
        """
        super().__init__()
        self.detector = require_exportable(detector)
        self.pooling = PyramidPooling(self.detector.head.box_pooler)
        self.suppression = suppression

    @property
    def divisibility(self) -> int:
        """What height and width of the input must be multiples of."""
        return max(1, int(self.detector.backbone.size_divisibility))

    @property
    def channels(self) -> int:
        """Of the images."""
        return len(self.detector.pixel_mean)

    def forward(self, images: Tensor, image_sizes: Tensor, original_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: (B, 3, H, W) uint8 in the detector's channel order. What lies right of and below
                an image is not looked at. H and W are multiples of :attr:`divisibility`.
            image_sizes: (B, 2) int64, height and width of each image within H and W.
            original_sizes: (B, 2) int64, height and width that the detections are scaled to.

        Returns:
            Boxes (B, D, 4) float32, absolute xyxy pixels of the original image; scores (B, D) float32; classes (B, D)
            int64. Best first; the last rows may have the class ``NO_CLASS``: they hold nothing, and have the score 0.
            All scores of an image are NaN if any of its predictions is NaN or infinite.
        """
        logits, boxes = self._predict(self._normalize(images, image_sizes), image_sizes)
        finite = torch.cat([logits, boxes], dim=-1).isfinite().flatten(1).all(1)
        scores, boxes, classes = self._choose(logits.sigmoid(), boxes, image_sizes)
        scale = (original_sizes / image_sizes).float().flip(1).repeat(1, 2)[:, None]
        boxes = _clip(boxes * scale, original_sizes)
        found = (scores > 0) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
        # Once more, to bring what holds nothing to the end.
        scores, order = torch.where(found, scores, torch.zeros_like(scores)).topk(scores.shape[1])
        boxes = torch.where(found[..., None], boxes, torch.zeros_like(boxes))
        # Only now: OpenVINO's topk puts NaN last.
        scores = torch.where(finite[:, None], scores, torch.full_like(scores, torch.nan))
        return _take(boxes, order), scores, torch.where(found, classes, NO_CLASS).gather(1, order)

    def _normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """(B, 3, H, W) normalized images, zero outside their own pixels, as ``ImageList`` pads them."""
        normalized = (images.float() - self.detector.pixel_mean) / self.detector.pixel_std
        height, width = images.shape[2:]
        rows = torch.arange(height, device=images.device) < image_sizes[:, :1]
        columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
        own = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(own, normalized, torch.zeros_like(normalized))

    def _predict(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, P, K) and boxes (B, P, 4) of the last stage, as ``DynamicHead.forward`` computes them."""
        features = self.detector.backbone(images)
        boxes, proposal_features = self._propose(features, image_sizes)
        head = self.detector.head
        maps = [features[name] for name in head.in_features]
        for stage in head.head_series:
            roi_features = self.pooling(maps, boxes).flatten(2).transpose(1, 2)
            logits, deltas, proposal_features = stage(proposal_features, roi_features)
            boxes = head.box_transform.apply_deltas(deltas.flatten(0, 1), boxes.flatten(0, 1)).view(deltas.shape)
        return logits, boxes

    def _propose(self, features: dict[str, Tensor], image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P, 4) absolute xyxy pixels of the network input, and (B, P, C)."""
        generator = self.detector.proposal_generator
        if isinstance(generator, DynamicProposalGenerator):
            boxes, proposal_features = generator.mix(generator.expert_weights(features, image_sizes))
        else:
            assert isinstance(generator, LearnedProposalGenerator)
            boxes = generator.init_proposal_boxes.weight[None]
            number = image_sizes.shape[0]
            proposal_features = generator.init_proposal_features.weight[None].expand(number, -1, -1)
        whwh = image_sizes.flip(1).repeat(1, 2).float()
        return box_convert(boxes, "cxcywh", "xyxy") * whwh[:, None], proposal_features

    def _choose(self, scores: Tensor, boxes: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of scores (B, P, K) and boxes (B, P, 4) the detections: scores (B, D), boxes (B, D, 4), classes (B, D)."""
        detector = self.detector
        proposals, num_classes = scores.shape[1:]
        suppressing = detector.nms_threshold < 1
        wanted = max(detector.num_detections, NMS_CANDIDATES) if suppressing else detector.num_detections
        scores, index = scores.flatten(1).topk(min(wanted, proposals * num_classes))
        boxes = _clip(_take(boxes, index // num_classes), image_sizes)
        classes = index % num_classes
        if not suppressing or self.suppression is None:
            return scores, boxes, classes
        keep = self.suppression(boxes, scores, classes, num_classes, detector.nms_threshold)
        scores, index = torch.where(keep, scores, torch.zeros_like(scores)).topk(
            min(detector.num_detections, scores.shape[1])
        )
        return scores, _take(boxes, index), classes.gather(1, index)


class PyramidPooling(nn.Module):
    """detectron2's ``ROIPooler`` for a batch of as many RoIs an image; each RoI is pooled once, from its own level."""

    def __init__(self, pooler: ROIPooler) -> None:
        """Args: the pooler whose levels are used."""
        super().__init__()
        self.pooler = pooler

    def forward(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        """
        Args:
            maps: (B, C, H, W), finest first.
            boxes: (B, P, 4) absolute xyxy pixels of the network input.

        Returns:
            (B * P, C, R, R).
        """
        # A box that is NaN would have no level, and would be read outside of the maps.
        boxes = boxes.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(boxes.shape[:2])
        rois = torch.cat([images.flatten()[:, None].to(boxes.dtype), boxes.flatten(0, 1)], dim=1)
        poolers = self.pooler.level_poolers
        if len(poolers) == 1:
            pooled: Tensor = poolers[0](maps[0], rois)
            return pooled
        levels = assign_boxes_to_levels(
            [Boxes(boxes.flatten(0, 1))],
            self.pooler.min_level,
            self.pooler.max_level,
            self.pooler.canonical_box_size,
            self.pooler.canonical_level,
        )
        rows = [(levels == level).nonzero()[:, 0] for level in range(len(poolers))]
        by_level = [pool(x, rois[r]) for pool, x, r in zip(poolers, maps, rows, strict=True)]
        # All RoIs, each once: where in this order each is.
        order = torch.cat(rows)
        torch._check(order.shape[0] == rois.shape[0])
        numbers = torch.arange(rois.shape[0], device=rois.device)
        return torch.cat(by_level)[torch.zeros_like(numbers).scatter(0, order, numbers)]


def _take(boxes: Tensor, index: Tensor) -> Tensor:
    """(B, M, 4) of (B, N, 4) boxes and (B, M) indices."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


def _clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """(B, N, 4) absolute xyxy boxes within (B, 2) heights and widths."""
    return boxes.clamp(min=0).minimum(sizes.flip(1).repeat(1, 2).to(boxes.dtype)[:, None])


def require_exportable(detector: nn.Module) -> SparseRCNN:
    """Returns the detector if it can be exported.

    Raises:
        ValueError: it cannot; names the part that is the reason.
    """
    # Not their subclasses: what these add to the forward pass would be left out silently.
    if type(detector) not in (SparseRCNN, DynamicSparseRCNN):
        raise ValueError(
            f"the detector {type(detector).__name__} cannot be exported: SparseRCNN can, its subclasses cannot"
        )
    assert isinstance(detector, SparseRCNN)
    if detector.training:
        raise ValueError("the detector is in training mode: call eval() before it is exported")
    generator, head = detector.proposal_generator, detector.head
    if type(generator) not in (LearnedProposalGenerator, DynamicProposalGenerator):
        raise ValueError(f"the proposal generator {type(generator).__name__} cannot be exported")
    if type(head) is not DynamicHead:
        raise ValueError(f"the head {type(head).__name__} cannot be exported: DynamicHead can, its subclasses cannot")
    for pooler in head.box_pooler.level_poolers:
        if not isinstance(pooler, ROIAlign):
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.POOLER_TYPE of {type(pooler).__name__} cannot be exported: use ROIAlignV2"
            )
    return detector
