#!/usr/bin/env python3
"""Shows what is in data sets before a training: counts, classes, sizes, problems, and a picture of samples.

    python tools/inspect_dataset.py coco:data/train.json:data/images coco:data/val.json:data/images

The picture shows the samples as the training gets them: after the augmentations of the config.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from dynamic_sparse_rcnn import add_dynamic_sparse_rcnn_config
from dynamic_sparse_rcnn.data.checks import inspect_dataset
from dynamic_sparse_rcnn.data.checks.statistics import measure_boxes
from dynamic_sparse_rcnn.data.datasets import check_same_classes, register_dataset
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.visualization.drawing import Image
from dynamic_sparse_rcnn.visualization.figures import draw_annotations, image_grid

CONFIG = Path(__file__).parents[1] / "configs/small/sparse_rcnn_R_18_FPN_50pro_256px.yaml"
PANEL_SIDE = 480
PANELS_A_ROW = 4


def main(args: argparse.Namespace) -> int:
    """Inspects all data sets; returns the number of those that cannot be used."""
    setup_logger(name="dynamic_sparse_rcnn", abbrev_name="data")
    cfg = read_config(args)
    panels: list[Image] = []
    unusable = 0
    for name in args.names:
        try:
            panels += inspect(cfg, name, args.images)
        except (KeyError, OSError, ValueError) as error:
            reason = error.args[0] if isinstance(error, KeyError) else error  # a KeyError's text is quoted
            print(f"error: {name} cannot be used: {reason}")
            unusable += 1
    if panels:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(args.output), cv2.cvtColor(image_grid(panels, PANELS_A_ROW), cv2.COLOR_RGB2BGR)):
            raise OSError(f"could not write {args.output}")
        print(f"Wrote {args.output}: {len(panels)} samples as the training gets them")
    if unusable == 0:
        check_same_classes(args.names)
    return unusable


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config of the training to come."""
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(args.config_file))
    cfg.merge_from_list(args.opts)
    return cfg


def inspect(cfg: CfgNode, name: str, num_samples: int) -> list[Image]:
    """Prints what a data set contains; returns the drawn samples."""
    register_dataset(name)
    class_names = MetadataCatalog.get(name).get("thing_classes") or ()
    num_classes = len(class_names) or cfg.MODEL.SparseRCNN.NUM_CLASSES
    num_proposals = cfg.MODEL.SparseRCNN.NUM_PROPOSALS
    found = inspect_dataset(name, num_classes=num_classes, num_proposals=num_proposals)
    print(found.text)
    print(measure_boxes(found.records, cfg).summary())
    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else 0)
    mapper = DetectionMapper(cfg, is_train=True, spares=found.records[:1])
    chosen = np.random.permutation(len(found.records))[:num_samples]
    names = list(class_names) or [f"class {i}" for i in range(num_classes)]
    return [draw_sample(mapper(found.records[i]), names, cfg.INPUT.FORMAT) for i in chosen]


def draw_sample(mapped: dict[str, Any], class_names: list[str], image_format: str) -> Image:
    """A panel of one input of the network."""
    image = mapped["image"].permute(1, 2, 0).numpy()
    image = np.ascontiguousarray(image[..., ::-1] if image_format == "BGR" else image)
    caption = Path(mapped["file_name"]).name
    return draw_annotations(image, mapped["instances"], class_names, caption, PANEL_SIDE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="coco:<json>:<image folder>, voc:<folder>:<split>, ..."
    )
    parser.add_argument("--config-file", type=Path, default=CONFIG, metavar="FILE", help="of the training to come")
    parser.add_argument("--images", type=int, default=12, metavar="N", help="samples to draw of each data set")
    parser.add_argument("--output", type=Path, default=Path("output/samples.png"), metavar="FILE")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs that override the config")
    raise SystemExit(min(1, main(parser.parse_args())))
