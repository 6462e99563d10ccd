"""Detectors with backbones of three families learn: on images never seen, the longer the better."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from timm_configs import use_timm, use_vit

from dynamic_sparse_rcnn.data.shape_images import SHAPE_CLASSES, ShapesConfig, draw_image
from dynamic_sparse_rcnn.engine.solver import build_optimizer

SIZE = 64
NUM_TRAIN, NUM_VAL = 128, 32
BATCH = 8


@pytest.fixture(scope="module")
def shapes() -> list[dict[str, Any]]:
    """Images of one to three shapes, as detectron2's inputs."""
    config = ShapesConfig(num_images=NUM_TRAIN + NUM_VAL, image_size=SIZE, max_objects=3, min_size=0.3, max_size=0.6)
    inputs = []
    for number in range(1, config.num_images + 1):
        drawn = draw_image(config, "train", number)
        instances = Instances(
            (SIZE, SIZE),
            gt_boxes=Boxes(torch.from_numpy(drawn.boxes).float()),
            gt_classes=torch.from_numpy(drawn.classes),
        )
        inputs.append({"image": torch.from_numpy(drawn.pixels.transpose(2, 0, 1).copy()), "instances": instances})
    return inputs


def for_training(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.SparseRCNN.NUM_CLASSES, cfg.MODEL.SparseRCNN.INIT_BOXES = len(SHAPE_CLASSES), "grid"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.CLIP_GRADIENTS.ENABLED = 1e-3, True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = "full_model", 1.0
    return cfg


@torch.no_grad()
def loss_of(model: torch.nn.Module, inputs: list[dict[str, Any]]) -> float:
    """The training loss without training: dropout off, batch norms fixed."""
    model.eval()
    model.training = True
    return sum(model(inputs).values()).item()


@pytest.mark.parametrize(
    ("family", "use"),
    [("test_resnet", use_timm), ("test_convnext", use_timm), ("test_vit", use_vit)],
)
def test_the_loss_on_unseen_images_falls_and_falls(tiny_cfg, shapes, family, use):
    cfg = for_training(use(tiny_cfg, family))
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    seen, unseen = shapes[:NUM_TRAIN], shapes[NUM_TRAIN:]
    losses = [loss_of(model, unseen)]
    for _ in range(3):
        for step in range(NUM_TRAIN // BATCH):
            model.train()
            first = step * BATCH
            optimizer.zero_grad()
            sum(model(seen[first : first + BATCH]).values()).backward()
            optimizer.step()
        losses.append(loss_of(model, unseen))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
