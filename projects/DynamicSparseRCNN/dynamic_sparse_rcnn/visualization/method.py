"""Figures of the method at work on images of a data set: label assignment and dynamic proposals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances, convert_image_to_rgb
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torchvision.ops import box_convert

from ..checkpoints.classes import DetectorClasses
from ..checkpoints.loading import load_for_evaluation
from ..data.images import read_image
from ..data.mapper import DetectionMapper
from ..data.records import Record
from ..engine.from_yaml import prepare_config
from ..modeling.assignment.costs import MatchCostModel
from ..modeling.assignment.matchers import HungarianMatcher, OptimalTransportMatcher
from ..modeling.detector import SparseRCNN
from ..modeling.proposals.dynamic import DynamicProposalGenerator
from ..modeling.structures import BatchedTargets
from .cascade import draw_assignment, draw_expert_proposals, draw_proposal_stages
from .drawing import Image
from .figures import draw_detections_beside_ground_truth, image_grid

# The score from which a proposal is followed through the stages.
_SURE = 0.3


def build_detector(cfg: CfgNode, trust: bool = False) -> SparseRCNN:
    """The detector of a config, for the images of ``DATASETS.TEST``; untrained if ``MODEL.WEIGHTS`` is empty.

    Args:
        cfg: completed in place.
        trust: whether a pickled checkpoint may run code.
    """
    prepare_config(cfg, is_train=False)
    detector = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        classes = DetectorClasses.from_datasets(cfg.DATASETS.TEST)
        load_for_evaluation(detector, cfg.MODEL.WEIGHTS, trust=trust, classes=classes)
    return detector


def find_records(cfg: CfgNode, images: Sequence[str], default: int) -> list[Record]:
    """Records of ``DATASETS.TEST``: those of the named images, or the first ones.

    Args:
        cfg: whose data sets are registered.
        images: file names, with or without suffix.
        default: how many to take where none is named.

    Raises:
        ValueError: an image is in no data set.
    """
    records = [record for name in cfg.DATASETS.TEST for record in DatasetCatalog.get(name)]
    if not images:
        return records[:default]
    by_name = {name: r for r in reversed(records) for name in (Path(r["file_name"]).stem, Path(r["file_name"]).name)}
    missing = [image for image in images if image not in by_name]
    if missing:
        raise ValueError(f"none of the {len(records)} images of {', '.join(cfg.DATASETS.TEST)} is {missing[0]!r}")
    return [by_name[image] for image in images]


def _annotations(record: Record) -> list[dict[str, Any]]:
    if "annotations" not in record:
        raise ValueError(f"{record['file_name']} has no annotations to draw: name a data set with annotations")
    annotations: list[dict[str, Any]] = record["annotations"]
    return annotations


@torch.no_grad()
def visualize_assignment(cfg: CfgNode, detector: SparseRCNN, record: Record) -> Image:
    """The assignments of Hungarian matching and of optimal transport for one image: a row each, a panel a stage."""
    _annotations(record)
    inputs = DetectionMapper(cfg, is_train=False)(record)
    predictions = detector.predict(detector.preprocess_image([inputs]))
    costs = MatchCostModel(cfg)(predictions, BatchedTargets.from_instances([inputs["instances"]], detector.device))
    image, gt_boxes = _to_rgb(cfg, inputs), inputs["instances"].gt_boxes.tensor
    rows = [
        draw_assignment(image, gt_boxes, predictions.boxes[:, 0], matcher(costs).gt_index[:, 0], caption)
        for caption, matcher in (("Hungarian", HungarianMatcher(cfg)), ("DLA", OptimalTransportMatcher(cfg)))
    ]
    return image_grid(rows, columns=1)


@torch.no_grad()
def visualize_proposals(
    cfg: CfgNode, detector: SparseRCNN, records: Sequence[Record], num_drawn: int
) -> tuple[Image, float]:
    """Each expert's boxes beside the boxes that are mixed from them, a row an image.

    Args:
        cfg: of the detector.
        detector: whose proposals are dynamic.
        records: of the images; each is run alone, as in evaluation.
        num_drawn: how many proposals to draw: those whose weights vary most among the images.

    Returns:
        The figure, and the variance of the experts' weights over the images.

    Raises:
        ValueError: the detector's proposals are the same for every image.
    """
    generator = detector.proposal_generator
    if not isinstance(generator, DynamicProposalGenerator):
        raise ValueError("The detector has static proposals, the same for every image: take one with dynamic proposals")
    mapper = DetectionMapper(cfg, is_train=False)
    batch = [mapper(record) for record in records]
    proposals = [_propose(detector, inputs) for inputs in batch]
    spread = torch.stack([x.expert_weights for x in proposals]).var(0, unbiased=False).mean(1)
    drawn = spread.topk(min(num_drawn, len(spread))).indices.sort().values
    experts = box_convert(generator.expert_boxes, "cxcywh", "xyxy")[:, drawn]
    rows = []
    for inputs, mixed in zip(batch, proposals, strict=True):
        height, width = mixed.image_size
        rows.append(
            draw_expert_proposals(
                _to_rgb(cfg, inputs),
                experts * experts.new_tensor([width, height, width, height]),
                mixed.proposal_boxes.tensor[drawn],
                mixed.expert_weights[drawn],
                f"mixed for {Path(inputs['file_name']).stem}",
            )
        )
    return image_grid(rows, columns=1), float(spread.mean())


@torch.no_grad()
def visualize_detections(cfg: CfgNode, detector: SparseRCNN, record: Record) -> Image:
    """The detections in one image, as it is on the disk, beside its ground truth."""
    image = read_image(record["file_name"], "RGB")
    (output,) = detector([DetectionMapper(cfg, is_train=False)(record)])
    annotations = _annotations(record)
    ground_truth = annotations_to_instances(annotations, image.shape[:2])
    ground_truth.gt_is_crowd = torch.tensor([bool(a.get("iscrowd", 0)) for a in annotations], dtype=torch.bool)
    class_names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    return draw_detections_beside_ground_truth(image, ground_truth, output["instances"].to("cpu"), class_names)


@torch.no_grad()
def visualize_stages(cfg: CfgNode, detector: SparseRCNN, record: Record, num_drawn: int) -> Image:
    """The proposals of one image before and after each stage, following those that end with the best scores.

    Args:
        cfg: of the detector.
        detector: as it was trained.
        record: of the image.
        num_drawn: how many proposals to follow at most.
    """
    inputs = DetectionMapper(cfg, is_train=False)(record)
    features, initial_boxes, proposal_features = detector.propose(detector.preprocess_image([inputs]))
    predictions = detector.head(features, initial_boxes, proposal_features)
    scores = predictions.logits[:, 0].sigmoid().amax(-1)
    best = scores[-1].topk(min(num_drawn, scores.shape[1]))
    boxes = torch.cat([initial_boxes, predictions.boxes[:, 0]])
    return draw_proposal_stages(_to_rgb(cfg, inputs), boxes, scores, best.indices[best.values >= _SURE].tolist())


def _propose(detector: SparseRCNN, inputs: dict[str, Any]) -> Instances:
    images = detector.preprocess_image([inputs])
    (proposals,), _ = detector.proposal_generator(images, detector.backbone(images.tensor))
    return proposals


def _to_rgb(cfg: CfgNode, inputs: dict[str, Any]) -> Image:
    image: Image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    return image
