"""Test-time augmentation: merges the detections of several versions of an image by NMS."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from torch import nn

from .structures import ModelInput


class DetectorWithTTA(nn.Module):
    """A detector with test-time augmentation, evaluated like one without.

    The counterpart of detectron2's ``GeneralizedRCNNWithTTA`` for all detectors that predict boxes, scores and classes.
    The detector runs on several versions of an image (``TEST.AUG.MIN_SIZES``, ``MAX_SIZE`` and ``FLIP``). Boxes are
    mapped back to the original image and merged by class-wise NMS at ``MODEL.ROI_HEADS.NMS_THRESH_TEST``. NMS is needed
    even if the detector itself has none: each version finds every object once.
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
            model: a detectron2 detector, possibly distributed.
            tta_mapper: maps an input to its versions, each with the ``transforms`` that produced it.
            nms_threshold: NMS drops a box whose IoU with a better box of its class is above this.
            num_detections: maximum number of detections per image; -1: no limit.
            batch_size: number of versions in a batch.
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
        """Detects objects like the detector in evaluation mode.

        Args:
            batched_inputs: detectron2's dicts; ``height`` and ``width`` default to the size of ``image``.

        Returns:
            A dict with ``instances`` for each image.

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
        found: list[Instances] = []
        for start in range(0, len(versions), self.batch_size):
            batch = versions[start : start + self.batch_size]
            outputs = self.model([{"image": version["image"]} for version in batch])
            for version, output in zip(batch, outputs, strict=True):
                found.append(_mapped_back(output["instances"], version["transforms"], size))
        merged = Instances.cat(found)
        keep = batched_nms(merged.pred_boxes.tensor, merged.scores, merged.pred_classes, self.nms_threshold)
        return merged[keep[: self.num_detections]]


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
