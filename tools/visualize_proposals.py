#!/usr/bin/env python3
"""Draws how dynamic proposals are mixed: each expert's boxes beside the boxes mixed from them, a row an image.

Takes the images from ``DATASETS.TEST``, and draws the proposals that differ most among them. With
``MODEL.WEIGHTS ''`` the model is untrained.

    python tools/visualize_proposals.py --config-file configs/shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml \\
        --image 000001 --image 000002 MODEL.WEIGHTS output/demo/model_final.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torchvision.ops import box_convert
from visualize_assignment import find_record

from dynamic_sparse_rcnn import DynamicProposalGenerator, SparseRCNN, add_dynamic_sparse_rcnn_config
from dynamic_sparse_rcnn.checkpoints.loading import load_for_evaluation
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.engine.trainer import prepare_config
from dynamic_sparse_rcnn.visualization.drawing import Image
from dynamic_sparse_rcnn.visualization.figures import draw_expert_proposals, image_grid

NUM_DEFAULT_IMAGES = 3


def main(args: argparse.Namespace) -> None:
    """Writes one picture, and prints how much boxes and weights differ among the images."""
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    prepare_config(cfg, is_train=False)
    detector = build_model(cfg).eval()
    if not isinstance(detector.proposal_generator, DynamicProposalGenerator):
        raise SystemExit(f"error: {args.config_file} has static proposals, the same for every image")
    if cfg.MODEL.WEIGHTS:
        load_for_evaluation(detector, cfg.MODEL.WEIGHTS)
    mapper = DetectionMapper(cfg, is_train=False)
    picture = draw(cfg, detector, [mapper(record) for record in find_records(cfg, args.image)], args.proposals)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(args.output), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f"could not write {args.output}")
    print(f"Wrote {args.output}")


def find_records(cfg: CfgNode, images: list[str]) -> list[dict[str, Any]]:
    """The records of the named images, or of the first ones."""
    if images:
        return [find_record(cfg, image) for image in images]
    records = [record for name in cfg.DATASETS.TEST for record in DatasetCatalog.get(name)]
    return records[:NUM_DEFAULT_IMAGES]


@torch.no_grad()
def draw(cfg: CfgNode, detector: SparseRCNN, batch: list[dict[str, Any]], num_drawn: int) -> Image:
    """A row for each network input. Each is run alone, as in evaluation."""
    proposals = [propose(detector, inputs) for inputs in batch]
    weights = torch.stack([x.expert_weights for x in proposals])
    spread = weights.var(0, unbiased=False).mean(1)
    print(f"Variance of the experts' weights over the {len(batch)} images: {spread.mean():.4f}")
    drawn = spread.topk(min(num_drawn, len(spread))).indices.sort().values
    experts = box_convert(detector.proposal_generator.expert_boxes, "cxcywh", "xyxy")[:, drawn]
    rows = []
    for inputs, mixed in zip(batch, proposals, strict=True):
        height, width = mixed.image_size
        rows.append(
            draw_expert_proposals(
                convert_image_to_rgb(inputs["image"].permute(1, 2, 0), cfg.INPUT.FORMAT),
                experts * experts.new_tensor([width, height, width, height]),
                mixed.proposal_boxes.tensor[drawn],
                mixed.expert_weights[drawn],
                f"mixed for {Path(inputs['file_name']).stem}",
            )
        )
    return image_grid(rows, columns=1)


def propose(detector: SparseRCNN, inputs: dict[str, Any]) -> Instances:
    """The initial proposals of one network input."""
    images = detector.preprocess_image([inputs])
    (proposals,), _ = detector.proposal_generator(images, detector.backbone(images.tensor))
    return proposals


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        help="file name of an image of DATASETS.TEST, repeatable; default the first three",
    )
    parser.add_argument("--proposals", type=int, default=8, help="how many to draw")
    parser.add_argument("--output", type=Path, default=Path("output/proposals.png"), metavar="PNG")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    main(parser.parse_args())
