#!/usr/bin/env python3
"""Draws which proposals of each stage learn from which ground truth: Hungarian matching beside DLA's transport.

Takes the images from ``DATASETS.TEST``. With ``MODEL.WEIGHTS ''`` the model is untrained.

    python tools/visualize_assignment.py --config-file configs/shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml \\
        --image 000001 MODEL.WEIGHTS output/demo/model_final.pth
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

from dynamic_sparse_rcnn import (
    BatchedTargets,
    HungarianMatcher,
    MatchCostModel,
    OptimalTransportMatcher,
    SparseRCNN,
    add_dynamic_sparse_rcnn_config,
)
from dynamic_sparse_rcnn.checkpoints.loading import load_for_evaluation
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.engine.trainer import prepare_config
from dynamic_sparse_rcnn.visualization.drawing import Image
from dynamic_sparse_rcnn.visualization.figures import draw_assignment, image_grid


def main(args: argparse.Namespace) -> None:
    """Writes one picture: a row for each matcher, a panel for each stage."""
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    prepare_config(cfg, is_train=False)
    mapper = DetectionMapper(cfg, is_train=False)
    mapper.is_train = True  # keeps the annotations
    detector = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        load_for_evaluation(detector, cfg.MODEL.WEIGHTS)
    picture = draw(cfg, detector, mapper(find_record(cfg, args.image)))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(args.output), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f"could not write {args.output}")
    print(f"Wrote {args.output}")


def find_record(cfg: CfgNode, image: str | None) -> dict[str, Any]:
    """The first record of ``DATASETS.TEST``, or the one whose file has this name, with or without its suffix."""
    records = [record for name in cfg.DATASETS.TEST for record in DatasetCatalog.get(name)]
    for record in records:
        path = Path(record["file_name"])
        if image in (None, path.name, path.stem):
            return record
    raise SystemExit(f"error: none of the {len(records)} images of DATASETS.TEST {cfg.DATASETS.TEST} is {image!r}")


@torch.no_grad()
def draw(cfg: CfgNode, detector: SparseRCNN, inputs: dict[str, Any]) -> Image:
    """The assignments of both matchers for one network input."""
    predictions = detector.predict(detector.preprocess_image([inputs]))
    targets = BatchedTargets.from_instances([inputs["instances"]], detector.device)
    costs = MatchCostModel(cfg)(predictions, targets)
    image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    rows = [
        draw_assignment(
            image,
            inputs["instances"].gt_boxes.tensor,
            predictions.boxes[:, 0],
            matcher(costs).gt_index[:, 0],
            caption,
        )
        for caption, matcher in (("Hungarian", HungarianMatcher(cfg)), ("DLA", OptimalTransportMatcher(cfg)))
    ]
    return image_grid(rows, columns=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--image", help="file name of an image of DATASETS.TEST, default the first")
    parser.add_argument("--output", type=Path, default=Path("output/assignment.png"), metavar="PNG")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    main(parser.parse_args())
