"""Test-time augmentation of a whole detector: what it finds in several versions of an image, merged by NMS."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from .structures import ModelInput


class DetectorWithTTA(nn.Module):
    """A detector with test-time augmentation, to be evaluated like one without.

    The counterpart of detectron2's ``GeneralizedRCNNWithTTA`` for any detector that gives boxes, scores and classes.
    Every version of an image (``TEST.AUG.MIN_SIZES``, ``MAX_SIZE`` and ``FLIP``) is run, its boxes are mapped back,
    and class-wise NMS at ``MODEL.ROI_HEADS.NMS_THRESH_TEST`` keeps the best of those that overlap. A detector that
    needs no NMS by itself needs it here: each version finds every object once.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        tta_mapper: Callable[[ModelInput], list[ModelInput]],
        nms_threshold: float,
        num_detections: int,
        batch_size: int = 3,
    ) -> None:
        """
        Args:
            model: of detectron2's contract, also distributed.
            tta_mapper: makes of an input its versions, each with the ``transforms`` that made it.
            nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
            num_detections: most detections an image; -1: no limit.
            batch_size: versions that are run at once.
        """
        super().__init__()
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.tta_mapper = tta_mapper
        self.nms_threshold = nms_threshold
        self.num_detections = num_detections if num_detections >= 0 else sys.maxsize
        self.batch_size = batch_size

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, object]:
        return {
            "model": model,
            "tta_mapper": DatasetMapperTTA(cfg),
            "nms_threshold": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "num_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, batched_inputs: Sequence[ModelInput]) -> list[dict[str, Instances]]:
        """As the detector's, in evaluation mode; ``height`` and ``width`` default to the input image's own.

        Raises:
            RuntimeError: the detector is in training mode.
        """
        if self.model.training:
            raise RuntimeError("Test-time augmentation is for evaluation: call eval() on the detector first")
        return [{"instances": self._detect(inputs)} for inputs in batched_inputs]

    def _detect(self, inputs: ModelInput) -> Instances:
        height, width = inputs["image"].shape[1:]
        inputs = {"height": height, "width": width} | inputs
        size = (inputs["height"], inputs["width"])
        versions = self.tta_mapper({**inputs, "image": inputs["image"].cpu()})
        found = [
            _mapped_back(output, version["transforms"], size)
            for start in range(0, len(versions), self.batch_size)
            for version, output in self._run(versions[start : start + self.batch_size])
        ]
        return self._merge(Instances.cat(found))

    def _run(self, versions: list[ModelInput]) -> list[tuple[ModelInput, Instances]]:
        """Detections in pixels of each version."""
        plain = [{"image": version["image"]} for version in versions]
        return [(version, output["instances"]) for version, output in zip(versions, self.model(plain), strict=True)]

    def _merge(self, detections: Instances) -> Instances:
        boxes: Tensor = detections.pred_boxes.tensor
        keep = batched_nms(boxes, detections.scores, detections.pred_classes, self.nms_threshold)
        return detections[keep[: self.num_detections]]


def _mapped_back(detections: Instances, transforms: Any, size: tuple[int, int]) -> Instances:
    boxes = detections.pred_boxes.tensor
    original = transforms.inverse().apply_box(boxes.detach().cpu().numpy())
    mapped = Instances(
        size,
        pred_boxes=Boxes(torch.as_tensor(original, dtype=boxes.dtype, device=boxes.device).reshape(-1, 4)),
        scores=detections.scores,
        pred_classes=detections.pred_classes,
    )
    mapped.pred_boxes.clip(size)
    return mapped[mapped.pred_boxes.nonempty()]
