#!/usr/bin/env python3
"""The demo: generates images of shapes, trains a small detector on them, evaluates it and draws what it sees.

Writes ``detections.png`` and ``stages.png`` to ``OUTPUT_DIR``; the last line printed is the AP. Another
config, and ``KEY VALUE`` pairs, can be given as to ``tools/train_net.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances, read_image

from dynamic_sparse_rcnn import SparseRCNN
from dynamic_sparse_rcnn.cli.running import summarize
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine.from_yaml import setup
from dynamic_sparse_rcnn.engine.trainer import Trainer
from dynamic_sparse_rcnn.errors import add_traceback_option, one_line_errors
from dynamic_sparse_rcnn.file_io import write_image
from dynamic_sparse_rcnn.visualization.figures import (
    Image,
    draw_detections_beside_ground_truth,
    draw_proposal_stages,
    image_grid,
)

CONFIG = Path(__file__).parents[1] / "configs/shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml"
SHAPES_FOLDER = Path("output/shapes")
NUM_TRAIN_IMAGES = 4000
NUM_VAL_IMAGES = 200
NUM_DRAWN_IMAGES = 8
NUM_FOLLOWED_PROPOSALS = 6


def main(args: argparse.Namespace) -> None:
    """Runs the demo, in this one process."""
    print("The demo generates images, trains for some minutes, evaluates, draws; much of detectron2's log comes first.")
    generate_shapes(SHAPES_FOLDER, "train", ShapesConfig(num_images=NUM_TRAIN_IMAGES))
    generate_shapes(SHAPES_FOLDER, "val", ShapesConfig(num_images=NUM_VAL_IMAGES))
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    draw(cfg, trainer.model.eval())
    print(*summarize(trainer.last_results), sep="\n")


def draw(cfg: CfgNode, detector: SparseRCNN) -> None:
    """Draws the first images of the first test set, and the stages of the fullest one, to ``OUTPUT_DIR``."""
    name = cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(name)[:NUM_DRAWN_IMAGES]
    class_names = MetadataCatalog.get(name).thing_classes
    mapper = DetectionMapper(cfg, is_train=False)
    panels = [draw_detections(detector, mapper, record, class_names) for record in records]
    fullest = max(records, key=lambda record: len(record["annotations"]))
    pictures = {
        "detections.png": image_grid(panels, columns=2),
        "stages.png": draw_stages(detector, mapper(fullest)),
    }
    for file_name, picture in pictures.items():
        path = Path(cfg.OUTPUT_DIR) / file_name
        write_image(picture, path)
        print(f"Wrote {path}")


@torch.no_grad()
def draw_detections(
    detector: SparseRCNN, mapper: DetectionMapper, record: dict[str, Any], class_names: list[str]
) -> Image:
    """The detections in one image of a data set beside its ground truth."""
    image = read_image(record["file_name"], format="RGB")
    (output,) = detector([mapper(record)])
    ground_truth = annotations_to_instances(record["annotations"], image.shape[:2])
    return draw_detections_beside_ground_truth(image, ground_truth, output["instances"].to("cpu"), class_names)


@torch.no_grad()
def draw_stages(detector: SparseRCNN, inputs: dict[str, Any]) -> Image:
    """The proposals of one network input after each stage, following those that end with the best scores."""
    images = detector.preprocess_image([inputs])
    features, initial_boxes, proposal_features = detector.propose(images)
    predictions = detector.head(features, initial_boxes, proposal_features)
    scores = predictions.logits[:, 0].sigmoid().amax(-1)
    best = scores[-1].topk(min(NUM_FOLLOWED_PROPOSALS, scores.shape[1]))
    return draw_proposal_stages(
        inputs["image"].permute(1, 2, 0).contiguous().numpy(),
        torch.cat([initial_boxes, predictions.boxes[:, 0]]),
        scores,
        best.indices[best.values >= 0.3].tolist(),
    )


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options, as :func:`setup` wants them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.set_defaults(eval_only=False)
    add_traceback_option(parser)
    parser.add_argument("--config-file", default=str(CONFIG), metavar="FILE")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse_args()
    with one_line_errors(options.traceback):
        main(options)
