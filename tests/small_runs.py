"""What runs of ``tools/train_net.py`` in tests have in common (the fixture ``run`` starts them)."""

from __future__ import annotations

import json
from pathlib import Path

from detectron2.config import CfgNode

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/shapes/sparse_rcnn_R_18_FPN_20pro.yaml")

#: Options that make it run in seconds on a CPU, for four iterations with two images each.
TINY = [
    *("DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SparseRCNN.HIDDEN_DIM", "32", "MODEL.SparseRCNN.DIM_DYNAMIC", "8"),
    *("MODEL.SparseRCNN.NUM_PROPOSALS", "6", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_BATCH_SIZE", "0"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "()", "MODEL.DEVICE", "cpu"),
]

#: With dynamic proposals and label assignment.
DYNAMIC = ["MODEL.META_ARCHITECTURE", "DynamicSparseRCNN", "MODEL.SparseRCNN.DPG.HIDDEN_DIM", "16"]


def read_metrics(folder: Path) -> list[dict]:
    """The rows that a run logged."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def use_slim_resnet_50(cfg: CfgNode) -> CfgNode:
    """In place of ResNet-18: with an eighth of the channels it is made and learned several times faster."""
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 50, 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32, 8
    return cfg


def use_resnet_18(cfg: CfgNode) -> CfgNode:
    """In place of the slim ResNet-50: with fewer layers, rounding and borders change less."""
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64, 64
    return cfg
