"""Small configs, instances and predictions that the tests share."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import Boxes, Instances
from generated_boxes import random_boxes

from dynamic_sparse_rcnn import StagePredictions, add_dynamic_sparse_rcnn_config

# The models are so small that threads cost more than they give, most of all beside other processes.
torch.set_num_threads(1)

_LOGGERS = [
    (logger, logger.propagate, logger.level, tuple(logger.handlers))
    for logger in map(logging.getLogger, ("detectron2", "dynamic_sparse_rcnn", "fvcore", "timm"))
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none, and puts files with slow tests first.

    A slow file that started last would keep one process busy while the others wait.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Exempts what has been imported from garbage collection, which takes 6 % of the time otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loggers_as_at_the_start() -> Iterator[None]:
    """Runs set up detectron2's logging, which stops propagation: later tests want to see what is logged, once.

    As at the start of the session, not of the test: fixtures of a wider scope, which run first, may train.
    """
    yield
    for logger, propagate, level, handlers in _LOGGERS:
        logger.propagate, logger.handlers = propagate, list(handlers)
        logger.setLevel(level)


@pytest.fixture
def tiny_cfg() -> CfgNode:
    """A detector that runs in milliseconds: ResNet-18, 32 channels, 2 stages, 8 proposals, 3 classes."""
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SparseRCNN"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignV2"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2
    node = cfg.MODEL.SparseRCNN
    node.NUM_CLASSES, node.NUM_PROPOSALS, node.NUM_HEADS, node.NHEADS = 3, 8, 2, 4
    node.HIDDEN_DIM, node.DIM_FEEDFORWARD, node.DIM_DYNAMIC = 32, 64, 16
    return cfg


@pytest.fixture
def tiny_dynamic_cfg(tiny_cfg: CfgNode) -> CfgNode:
    """The same with dynamic proposals and label assignment, by the meta-architecture's name alone."""
    tiny_cfg.MODEL.META_ARCHITECTURE = "DynamicSparseRCNN"
    tiny_cfg.MODEL.SparseRCNN.DPG.HIDDEN_DIM = 16
    tiny_cfg.MODEL.SparseRCNN.DPG.POOL_SIZE = 6
    return tiny_cfg


@pytest.fixture
def make_instances() -> Callable[..., Instances]:
    """Makes the ground truths of one image: random boxes inside it, random classes."""

    def make(number: int, image_size: tuple[int, int] = (64, 96), num_classes: int = 3) -> Instances:
        return Instances(
            image_size,
            gt_boxes=Boxes(random_boxes(number, *image_size)),
            gt_classes=torch.randint(num_classes, (number,)),
        )

    return make


@pytest.fixture
def make_predictions() -> Callable[..., StagePredictions]:
    """Makes predictions of random logits and boxes inside the images, with gradients on request."""

    def make(
        stages: int,
        image_sizes: Sequence[tuple[int, int]],
        proposals: int,
        num_classes: int = 3,
        requires_grad: bool = False,
    ) -> StagePredictions:
        logits = torch.randn(stages, len(image_sizes), proposals, num_classes)
        boxes = torch.stack(
            [torch.stack([random_boxes(proposals, *size) for size in image_sizes]) for _ in range(stages)]
        )
        return StagePredictions(logits.requires_grad_(requires_grad), boxes.requires_grad_(requires_grad))

    return make


@pytest.fixture
def make_inputs(make_instances: Callable[..., Instances]) -> Callable[..., list[dict]]:
    """Makes detectron2's input dicts with as many ground truths as ``counts`` says, on mixed sizes."""

    def make(counts: Sequence[int], sizes: Sequence[tuple[int, int]] | None = None) -> list[dict]:
        sizes = sizes or [(64 + 16 * (i % 3), 96 - 8 * (i % 2)) for i in range(len(counts))]
        return [
            {
                "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8),
                "instances": make_instances(count, size),
                "file_name": f"image_{i}.png",
                "height": size[0],
                "width": size[1],
            }
            for i, (count, size) in enumerate(zip(counts, sizes, strict=True))
        ]

    return make


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a data set of six generated images."""
    from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes

    paths = generate_shapes(tmp_path_factory.mktemp("shapes"), "train", ShapesConfig(num_images=6, image_size=64))
    return f"coco:{paths.json_path}:{paths.image_folder}"


@pytest.fixture
def run(shapes: str, tmp_path: Path) -> Callable[..., Any]:
    """Runs ``tools/train_net.py`` in this process, on the tiny model and the generated set; ``run`` is its output."""
    import small_runs
    from train_net import argument_parser

    from dynamic_sparse_rcnn.engine import main as engine_main

    def run_main(*options: str) -> Any:
        arguments = ["--config-file", small_runs.CONFIG, *(x for x in options if x.startswith("--"))]
        pairs = [x for x in options if not x.startswith("--")]
        datasets = ["DATASETS.TRAIN", f"('{shapes}',)", "DATASETS.TEST", f"('{shapes}',)"]
        output = ["OUTPUT_DIR", str(tmp_path / "run")]
        arguments += [*small_runs.TINY, *datasets, *output, *pairs]
        return engine_main.main(argument_parser().parse_args(arguments))

    return run_main
