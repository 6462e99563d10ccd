"""What runs of ``tools/train_net.py`` in tests have in common (the fixture ``run`` starts them)."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/shapes/sparse_rcnn_R_18_FPN_20pro.yaml")

#: Options that make it run in seconds on a CPU, for four iterations with two images each.
TINY = [
    *("DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SparseRCNN.HIDDEN_DIM", "32", "MODEL.SparseRCNN.DIM_DYNAMIC", "8"),
    *("MODEL.SparseRCNN.NUM_PROPOSALS", "6", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_BATCH_SIZE", "0"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "()", "MODEL.DEVICE", "cpu"),
]

#: With dynamic proposals and label assignment.
DYNAMIC = ["MODEL.META_ARCHITECTURE", "DynamicSparseRCNN", "MODEL.SparseRCNN.DPG.HIDDEN_DIM", "16"]


def read_metrics(folder: Path) -> list[dict]:
    """The rows that a run logged."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
