"""What the benchmark of speed runs: detectors, inputs, steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets import load_coco_json
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from dynamic_sparse_rcnn import SparseRCNN, add_dynamic_sparse_rcnn_config
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine.precision import autocast, autocast_dtype
from dynamic_sparse_rcnn.engine.solver import build_optimizer

CONFIGS = Path(__file__).parents[1] / "configs"
# Of a data set that a config leaves open.
DEFAULT_CLASSES = 80
# Longer side of the smallest proposals, as a share of the image.
SMALLEST_PROPOSAL = 0.03


@dataclass(frozen=True)
class Workload:
    """A static detector and the batches it gets; height and width are those of all images."""

    config: str
    images: int
    height: int
    width: int
    ground_truths: int
    proposals: int
    device: str
    precision: str | None

    def load_config(self, options: Sequence[str] = ()) -> CfgNode:
        """The config, without weights and with ``KEY VALUE`` options."""
        cfg = get_cfg()
        add_dynamic_sparse_rcnn_config(cfg)
        cfg.merge_from_file(str(CONFIGS / self.config))
        node = cfg.MODEL.SparseRCNN
        node.NUM_PROPOSALS, node.NUM_CLASSES = self.proposals, node.NUM_CLASSES or DEFAULT_CLASSES
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.CHECKPOINT = self.device, "", ""
        cfg.MODEL.TIMM.FREEZE_AT = 0  # a training step includes the backbone
        # Times are of always the same boxes: what is learned in a few steps shall not show.
        cfg.SOLVER.BASE_LR = 1e-8
        cfg.merge_from_list(list(options))
        return cfg

    def make_detector(self, cfg: CfgNode) -> SparseRCNN:
        """With random weights, but boxes as after a training: of all sizes, refined a little by each stage."""
        torch.manual_seed(0)
        detector: SparseRCNN = build_model(cfg)
        longer = SMALLEST_PROPOSAL ** torch.rand(self.proposals, 1)
        sides = longer * (0.5 + 0.5 * torch.rand(self.proposals, 2))
        boxes = torch.cat([sides / 2 + (1 - sides) * torch.rand(self.proposals, 2), sides], dim=1)
        with torch.no_grad():
            for name, parameter in detector.named_parameters():
                if name.endswith("_proposal_boxes.weight"):  # of one expert or several
                    parameter.copy_(boxes.repeat(len(parameter) // len(boxes), 1))
                elif name.endswith("bboxes_delta.weight"):
                    parameter.mul_(0.05)
        return detector

    def make_inputs(self, num_classes: int) -> list[dict[str, Any]]:
        """Noise with random boxes, as detectron2's mapper gives images."""
        generator = torch.Generator().manual_seed(0)
        size = torch.tensor([self.width, self.height, self.width, self.height])
        inputs: list[dict[str, Any]] = []
        for _ in range(self.images):
            corners = torch.rand(self.ground_truths, 2, 2, generator=generator).sort(1).values.flatten(1)
            classes = torch.randint(num_classes, (self.ground_truths,), generator=generator)
            shape = (3, self.height, self.width)
            inputs.append(
                {
                    "image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
                    "instances": Instances(shape[1:], gt_boxes=Boxes(corners * size), gt_classes=classes),
                    "height": self.height,
                    "width": self.width,
                }
            )
        return inputs

    @property
    def dtype(self) -> torch.dtype | None:
        """Of mixed precision; None: without it."""
        return autocast_dtype(self.precision, self.device, "--precision") if self.precision else None


@dataclass(frozen=True)
class Subject:
    """A detector, its optimizer with the gradient scaler that float16 needs, and its batch."""

    workload: Workload
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    inputs: list[dict[str, Any]]

    @classmethod
    def make(cls, workload: Workload, options: Sequence[str] = ()) -> Subject:
        """A detector of this project."""
        cfg = workload.load_config(options)
        detector = workload.make_detector(cfg)
        inputs = workload.make_inputs(cfg.MODEL.SparseRCNN.NUM_CLASSES)
        # Few steps: a scale as after many.
        scaler = torch.amp.GradScaler("cuda", init_scale=256.0, enabled=workload.dtype == torch.float16)
        return cls(workload, detector, build_optimizer(cfg, detector), scaler, inputs)

    def loss(self) -> torch.Tensor:
        """The sum of all losses of the batch."""
        self.model.train()
        with autocast(self.workload.dtype, self.workload.device):
            return torch.stack(list(self.model(self.inputs).values())).sum()

    def step(self) -> None:
        """A step of the training."""
        self.scaler.scale(self.loss()).backward()
        self.update()

    def update(self) -> None:
        """What a step does after the backward pass."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def infer(self) -> None:
        """From images to detections in their sizes."""
        self.model.eval()
        with autocast(self.workload.dtype, self.workload.device):
            self.model(self.inputs)

    def make_prediction(self) -> Callable[[], None]:
        """From normalized images on the device to the predictions of all stages."""
        model: Any = self.model
        images = model.preprocess_image(self.inputs)

        @torch.no_grad()
        def predict() -> None:
            model.eval()
            with autocast(self.workload.dtype, self.workload.device):
                model.predict(images)

        return predict


@contextmanager
def data_loading(workload: Workload) -> Iterator[Callable[[], None]]:
    """Decodes and augments the generated images of one batch, in this process; a training has workers for it."""
    mapper = DetectionMapper(workload.load_config(), is_train=True)
    with tempfile.TemporaryDirectory() as folder:
        config = ShapesConfig(num_images=workload.images, image_size=workload.height)
        paths = generate_shapes(Path(folder), "train", config)
        records = load_coco_json(str(paths.json_path), str(paths.image_folder))

        def load() -> None:
            for record in records:
                mapper(record)

        yield load
