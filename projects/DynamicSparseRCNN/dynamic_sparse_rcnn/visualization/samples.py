"""A look at a data set before a training: what it holds, and samples as the network gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import build_augmentation, convert_image_to_rgb
from detectron2.utils.env import seed_all_rng

from ..data.checks import inspect_dataset as look_at
from ..data.checks.statistics import measure_boxes
from ..data.datasets import register_dataset
from ..data.mapper import DetectionMapper, Resize
from .drawing import Image
from .figures import draw_annotations

SAMPLES_A_ROW = 4
_SAMPLE_SIDE = 480


def inspect_dataset(cfg: CfgNode, name: str, num_samples: int) -> tuple[str, list[Image]]:
    """Looks at a data set as a training with ``cfg`` would.

    Args:
        cfg: of the training to come.
        name: of the data set.
        num_samples: how many to draw, at most.

    Returns:
        What it holds, as text of some lines; and the drawn samples, (H, W, 3) uint8 RGB.

    Raises:
        KeyError, OSError, ValueError: the data set cannot be used.
    """
    register_dataset(name)
    class_names = MetadataCatalog.get(name).get("thing_classes") or ()
    num_classes = len(class_names) or cfg.MODEL.SparseRCNN.NUM_CLASSES
    num_proposals = cfg.MODEL.SparseRCNN.NUM_PROPOSALS
    resize = Resize.of(build_augmentation(cfg, is_train=True))
    found = look_at(name, num_classes=num_classes, num_proposals=num_proposals, resize=resize)
    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else 0)
    mapper = DetectionMapper(cfg, is_train=True, spares=found.records[:1])
    chosen = np.random.permutation(len(found.records))[:num_samples]
    names = list(class_names) or [f"class {i}" for i in range(num_classes)]
    samples = [_draw_sample(mapper(found.records[i]), names, cfg.INPUT.FORMAT) for i in chosen]
    return f"{found.text}\n{measure_boxes(found.records, cfg).summary()}", samples


def _draw_sample(mapped: dict[str, Any], class_names: list[str], image_format: str) -> Image:
    image = np.ascontiguousarray(convert_image_to_rgb(mapped["image"].permute(1, 2, 0), image_format))
    scale = _SAMPLE_SIDE / max(image.shape[:2])
    return draw_annotations(image, mapped["instances"], class_names, Path(mapped["file_name"]).name, scale)
