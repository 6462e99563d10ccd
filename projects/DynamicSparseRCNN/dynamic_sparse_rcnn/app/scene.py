"""What the page shows of an image: computed once, drawn again whenever a slider moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, BoxMode, Instances
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from ..config import add_dynamic_sparse_rcnn_config
from ..data.records import Record
from ..modeling.assignment.matchers import HungarianMatcher, Matcher, OptimalTransportMatcher
from ..modeling.detector import SparseRCNN
from ..modeling.guards import find_finite, require_finite
from ..modeling.losses.criterion import SetCriterion
from ..modeling.structures import BACKGROUND, BatchedTargets, StagePredictions
from ..prediction import Predictor
from ..prediction.sources import Frame
from ..visualization.cascade import draw_assigned, draw_expert_proposals, draw_proposals
from ..visualization.drawing import Image, resized
from ..visualization.figures import draw_detections

# Larger images are shown shrunk; the detector gets all of their pixels.
_LONGEST_SHOWN_SIDE = 1280
_MOST_FOLLOWED = 20
_MOST_MIXED = 8


@dataclass(frozen=True)
class Scene:
    """One image and what a detector makes of it; all boxes in absolute xyxy pixels of ``image``.

    Attributes:
        image: (H, W, 3) uint8 RGB, as it is shown.
        detections: ``pred_boxes``, ``scores`` and ``pred_classes`` of all scores.
        class_names: of all classes.
        stage_boxes: (S+1, P, 4); row 0 holds the initial proposals.
        stage_scores: (S, P), each proposal's best score.
        distinct: (N,) int64, the proposals that NMS keeps, best first.
        expert_boxes: (E, P, 4); None if proposals are static.
        expert_weights: (P, E), likewise.
        gt_boxes: (G, 4); None if the image has no annotations.
        gt_index: (S, P) int64 in [0, G), or -1 for background, by the name of the matcher.
    """

    image: Image
    detections: Instances
    class_names: Sequence[str]
    stage_boxes: Tensor
    stage_scores: Tensor
    distinct: Tensor
    expert_boxes: Tensor | None
    expert_weights: Tensor | None
    gt_boxes: Tensor | None
    gt_index: Mapping[str, Tensor]

    def draw_detections(self, threshold: float) -> Image:
        """The detections with at least this score."""
        return draw_detections(self.image, self.detections[self.detections.scores >= threshold], self.class_names)

    def draw_stage(self, stage: int, threshold: float) -> Image:
        """The proposals after a stage (0: before the first); in color those that become detections."""
        scores = self.stage_scores[stage - 1] if stage else None
        return draw_proposals(self.image, self.stage_boxes[stage], self.followed(threshold), scores)

    def draw_assignment(self, stage: int, matcher: str) -> Image | None:
        """Which proposals of a stage learn from which ground truth (of stage 0: none); None without ground truth."""
        if self.gt_boxes is None:
            return None
        indices = self.gt_index[matcher]
        index = indices[stage - 1] if stage else torch.full_like(indices[0], BACKGROUND)
        return draw_assigned(self.image, self.gt_boxes, self.stage_boxes[stage], index)

    def draw_experts(self, threshold: float) -> Image | None:
        """Each expert's boxes beside what is mixed from them; None if proposals are static."""
        if self.expert_boxes is None or self.expert_weights is None:
            return None
        drawn = self.followed(threshold)[:_MOST_MIXED]
        mixed = self.stage_boxes[0, drawn]
        return draw_expert_proposals(self.image, self.expert_boxes[:, drawn], mixed, self.expert_weights[drawn])

    def weigh_experts(self, threshold: float) -> dict[str, float] | None:
        """The mean weight of each expert for the proposals that become detections; None if proposals are static."""
        if self.expert_weights is None:
            return None
        weights = self.expert_weights[self.followed(threshold)].mean(0)
        return {f"expert {number}": weight for number, weight in enumerate(weights.tolist(), 1)}

    def followed(self, threshold: float) -> list[int]:
        """The proposals that become detections, best first; without any, the best one."""
        strong = self.stage_scores[-1, self.distinct] >= threshold
        return self.distinct[: min(_MOST_FOLLOWED, max(1, int(strong.sum())))].tolist()


def require_stages(model: torch.nn.Module) -> SparseRCNN:
    """The detector, if it has stages to show.

    Raises:
        ValueError: it has none: it is exported, or of another kind.
    """
    if not isinstance(model, SparseRCNN):
        raise ValueError(
            f"A {type(model).__name__} has no stages to show: name a run or a checkpoint of SparseRCNN or "
            "DynamicSparseRCNN, not an exported file"
        )
    return model


def find_matchers(detector: SparseRCNN) -> dict[str, Matcher]:
    """The papers' two matchers and the detector's own, by name; empty if its criterion is not a ``SetCriterion``."""
    if not isinstance(detector.criterion, SetCriterion):
        return {}
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    matchers = {"DLA": OptimalTransportMatcher(cfg), "Hungarian": HungarianMatcher(cfg)}
    own = detector.criterion.matcher
    names = {type(matcher): name for name, matcher in matchers.items()}
    return matchers | {names.get(type(own), type(own).__name__): own}


@torch.no_grad()
def look(predictor: Predictor, frame: Frame, record: Record | None = None) -> Scene:
    """Runs the detector on an image, once.

    Args:
        predictor: whose model has stages.
        frame: the image.
        record: of the image, with annotations; None: it has none.

    Raises:
        FloatingPointError: a prediction is not finite.
    """
    detector = require_stages(predictor.model)
    inputs = predictor.to_input(frame)
    images = detector.preprocess_image([inputs])
    features = detector.backbone(images.tensor)
    (proposals,), _ = detector.proposal_generator(images, features)
    boxes = proposals.proposal_boxes.tensor
    predictions = detector.head(features, boxes[None], proposals.proposal_features[None])
    require_finite(find_finite(predictions), [inputs])
    shown = resized(frame.pixels, min(1.0, _LONGEST_SHOWN_SIDE / max(frame.pixels.shape[:2])))
    (found,) = detector.detect(predictions.last, images.image_sizes)
    height, width = images.image_sizes[0]
    scale = boxes.new_tensor([shown.shape[1] / width, shown.shape[0] / height] * 2)
    gt_boxes, gt_index = _assign(detector, predictions, proposals.image_size, record)
    dynamic = proposals.has("expert_weights")
    return Scene(
        shown,
        detector_postprocess(found, *shown.shape[:2]).to("cpu"),
        predictor.classes.names,
        (torch.cat([boxes[None], predictions.boxes[:, 0]]) * scale).cpu(),
        predictions.logits[:, 0].float().sigmoid().amax(-1).cpu(),
        _distinct(predictions.last, detector.nms_threshold).cpu(),
        (_expert_boxes(detector, width, height) * scale).cpu() if dynamic else None,
        proposals.expert_weights.cpu() if dynamic else None,
        None if gt_boxes is None else gt_boxes * scale.cpu(),
        gt_index,
    )


def _distinct(last: StagePredictions, nms_threshold: float) -> Tensor:
    """(N,) indices of the proposals that NMS keeps, best first."""
    scores, classes = last.logits[0, 0].float().sigmoid().max(-1)
    return batched_nms(last.boxes[0, 0], scores, classes, nms_threshold)


def _expert_boxes(detector: SparseRCNN, width: int, height: int) -> Tensor:
    """(E, P, 4) xyxy pixels of a network input."""
    generator: Any = detector.proposal_generator
    boxes = box_convert(generator.expert_boxes, "cxcywh", "xyxy")
    return boxes * boxes.new_tensor([width, height, width, height])


def _assign(
    detector: SparseRCNN, predictions: StagePredictions, size: tuple[int, int], record: Record | None
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The (G, 4) ground truths in pixels of the network input, and each matcher's (S, P) assignment, on the CPU."""
    annotations = [a for a in record["annotations"] if not a.get("iscrowd")] if record else []
    matchers = find_matchers(detector)
    if record is None or not annotations or not matchers:
        return None, {}
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    scale = np.array([size[1] / record["width"], size[0] / record["height"]] * 2)
    gt_boxes = torch.tensor(np.array(boxes) * scale, dtype=torch.float32)
    ground_truth = Instances(size, gt_boxes=Boxes(gt_boxes))
    ground_truth.gt_classes = torch.tensor([a["category_id"] for a in annotations])
    targets = BatchedTargets.from_instances([ground_truth], detector.device)
    criterion: Any = detector.criterion  # one with matchers has costs
    costs = criterion.cost_model(predictions, targets)
    return gt_boxes, {name: matcher(costs).gt_index[:, 0].cpu() for name, matcher in matchers.items()}
