"""The detector: backbone, proposal generator, dynamic head and criterion, in detectron2's contract."""

from __future__ import annotations

import logging
import math
import sys
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.logger import log_every_n_seconds
from torch import Tensor, nn

from ..checkpoints.names import use_public_names
from ..config_resolution import choose_nms_threshold, resolved_copy
from .events import current_event_storage
from .head.head import DynamicHead
from .losses.criterion import build_criterion
from .structures import BatchedTargets, ModelInput, StagePredictions, image_sizes_to_whwh

# Pairs of proposal and class that NMS looks at, the best of an image.
NMS_CANDIDATES = 1000


@META_ARCH_REGISTRY.register()
class SparseRCNN(nn.Module):
    """Sparse R-CNN (arXiv 2011.12450): learned proposals, refined by a cascade, matched one to one."""

    #: For detectors that predict or learn more: what they build their head of, and the targets of their losses.
    head_class: ClassVar[type[DynamicHead]] = DynamicHead
    targets_class: ClassVar[type[BatchedTargets]] = BatchedTargets
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        head: DynamicHead,
        criterion: nn.Module,
        num_detections: int,
        nms_threshold: float | None = None,
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        """
        Args:
            backbone: gives a dict of feature maps.
            proposal_generator: of detectron2's contract, with ``proposal_boxes`` and ``proposal_features``.
            head: refines the proposals.
            criterion: maps ``(StagePredictions, BatchedTargets)`` to weighted losses.
            num_detections: most detections an image; -1: no limit.
            nms_threshold: IoU above which the weaker of two boxes of a class is dropped; 1 drops none; None: what
                the criterion's matcher needs.
            pixel_mean: per channel of the input image, in its own units (0..255).
            pixel_std: likewise.

        Raises:
            ValueError: the criterion's matcher is one-to-many, and ``nms_threshold`` drops nothing.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.head = head
        self.criterion = criterion
        self.num_detections = num_detections if num_detections >= 0 else sys.maxsize
        matcher = getattr(criterion, "matcher", None)
        one_to_many = getattr(matcher, "one_to_many", False)
        self.nms_threshold = choose_nms_threshold(type(matcher).__name__, one_to_many, nms_threshold)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        use_public_names(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        cfg = resolved_copy(cfg)
        backbone = build_backbone(cfg)
        build_generator = PROPOSAL_GENERATOR_REGISTRY.get(cfg.MODEL.PROPOSAL_GENERATOR.NAME)
        return {
            "backbone": backbone,
            "proposal_generator": build_generator(cfg, backbone.output_shape()),
            "head": cls.head_class(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg),
            "num_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "nms_threshold": cfg.MODEL.SparseRCNN.NMS_THRESHOLD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def init_proposal_boxes(self) -> nn.Module:
        """The learned boxes under their public name, where fvcore looks when a checkpoint's do not fit."""
        return self.proposal_generator.get_submodule("init_proposal_boxes")

    @property
    def init_proposal_features(self) -> nn.Module:
        """Likewise the learned features."""
        return self.proposal_generator.get_submodule("init_proposal_features")

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and the inputs are brought."""
        return self.pixel_mean.device

    def forward(
        self,
        batched_inputs: list[ModelInput],
        do_postprocess: bool = True,
        *,
        divisor: Tensor | None = None,
        pad_to: tuple[int, int] | None = None,
    ) -> Any:
        """
        Args:
            batched_inputs: detectron2's dicts: ``image`` (3, H, W) in ``INPUT.FORMAT``, 0..255; for training
                ``instances`` with ``gt_boxes`` and ``gt_classes``; for inference optionally ``height`` and
                ``width``, the size that the detections shall have (default: the image's own).
            do_postprocess: whether detections are scaled to that size (inference only).
            divisor: what the criterion divides the summed losses by (training only); None: its own count.
            pad_to: least height and width, in pixels, that the batch is padded to.

        Returns:
            In training a dict of weighted scalar losses. At inference a list of ``{"instances": Instances}``
            with ``pred_boxes``, ``scores`` and ``pred_classes``, best first; without ``do_postprocess``
            a list of ``Instances`` in pixels of the network input.

        Raises:
            FloatingPointError: a prediction is NaN or infinite, or a box too large for its area to be finite;
                names stage, images and iteration.
            ValueError: a ground truth's class is not in [0, K); names the image.
        """
        images = self.preprocess_image(batched_inputs, pad_to)
        predictions = self.predict(images)
        if self.training:
            return self._compute_losses(predictions, batched_inputs, divisor)
        _require_finite(_find_finite(predictions), batched_inputs)
        detections = self.detect(predictions.last, images.image_sizes)
        if not do_postprocess:
            return detections
        return [
            {"instances": detector_postprocess(x, inputs.get("height", size[0]), inputs.get("width", size[1]))}
            for x, inputs, size in zip(detections, batched_inputs, images.image_sizes, strict=True)
        ]

    @torch.no_grad()
    def count(self, batched_inputs: list[ModelInput], *, pad_to: tuple[int, int] | None = None) -> Tensor:
        """What the criterion counts in these images, on this rank: what it would divide their losses by.

        Runs the detector only if predictions decide it. Counts of the parts of a batch add up to that of the batch.

        Args:
            batched_inputs: as of :meth:`forward`, with ``instances``.
            pad_to: as of :meth:`forward`.
        """
        targets = self.targets_class.from_instances([x["instances"] for x in batched_inputs], self.device)
        criterion: Any = self.criterion
        count: Tensor | None = criterion.count_targets(targets)
        if count is None:
            count = criterion.count(self.predict(self.preprocess_image(batched_inputs, pad_to)), targets)
        return count

    def _compute_losses(
        self, predictions: StagePredictions, batched_inputs: list[ModelInput], divisor: Tensor | None
    ) -> dict[str, Tensor]:
        instances = [x["instances"] for x in batched_inputs]
        _check_classes(batched_inputs, predictions.logits.shape[3])
        _report_excess_ground_truths(instances, predictions.boxes.shape[2])
        finite = _find_finite(predictions)
        targets = self.targets_class.from_instances(instances, self.device)
        # Criteria that take no divisor work too, as long as nobody gives one.
        options = {} if divisor is None else {"divisor": divisor}
        try:
            losses: dict[str, Tensor] = self.criterion(predictions, targets, **options)
        except Exception:  # SciPy, for one, does not match NaN
            _require_finite(finite, batched_inputs)
            raise
        # Looked at late: a GPU has got all of the criterion's work to do by now.
        _require_finite(finite, batched_inputs)
        return losses

    def preprocess_image(self, batched_inputs: list[ModelInput], pad_to: tuple[int, int] | None = None) -> ImageList:
        """Normalizes the images and pads them to a batch, of ``pad_to`` (height, width) pixels at least."""
        # To a GPU without waiting for it: it may still be busy with the step before.
        asynchronous = self.device.type == "cuda"
        images = [x["image"].to(self.device, non_blocking=asynchronous) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        batch = ImageList.from_tensors(images, self.backbone.size_divisibility)
        return batch if pad_to is None else _pad(batch, pad_to, self.backbone.size_divisibility)

    def propose(self, images: ImageList) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Feature maps of the backbone, (B, P, 4) proposal boxes in pixels and (B, P, C) features."""
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features)
        boxes = torch.stack([x.proposal_boxes.tensor for x in proposals])
        return features, boxes, torch.stack([x.proposal_features for x in proposals])

    def predict(self, images: ImageList) -> StagePredictions:
        """The predictions of all stages."""
        return self.head(*self.propose(images))

    def detect(self, predictions: StagePredictions, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """The best-scored pairs of proposal and class of each image, best first."""
        scores = predictions.logits[0].detach().float().sigmoid()
        _, proposals, classes = scores.shape
        # With NMS more candidates than detections, to replace what it drops.
        wanted = self.num_detections if self.nms_threshold >= 1 else max(self.num_detections, NMS_CANDIDATES)
        scores, index = scores.flatten(1).topk(min(wanted, proposals * classes))
        proposal = index // classes
        boxes = predictions.boxes[0].detach().gather(1, proposal[..., None].expand(-1, -1, 4))
        # All images at once: Boxes.clip would wait for the device, once an image.
        boxes = boxes.clamp(min=0).minimum(image_sizes_to_whwh(image_sizes, boxes.device)[:, None])
        detections = [
            Instances(size, pred_boxes=Boxes(b), scores=s, pred_classes=i % classes)
            for size, b, s, i in zip(image_sizes, boxes, scores, index, strict=True)
        ]
        for name, values in self.further_fields(predictions, proposal).items():
            for instances, own in zip(detections, values, strict=True):
                instances.set(name, own)
        return [self._suppress(x) for x in detections]

    def further_fields(self, predictions: StagePredictions, proposal: Tensor) -> dict[str, Tensor]:
        """Fields of the detections beside box, score and class; detectors that predict more override this.

        Args:
            predictions: of the last stage, (1, B, P, .).
            proposal: (B, D) int64, the number of the proposal that each detection is.

        Returns:
            By name, (B, D, ...) each.
        """
        return {}

    def _suppress(self, detections: Instances) -> Instances:
        if self.nms_threshold >= 1:
            return detections
        boxes = detections.pred_boxes.tensor
        keep = batched_nms(boxes, detections.scores, detections.pred_classes, self.nms_threshold)
        return detections[keep[: self.num_detections]]


@META_ARCH_REGISTRY.register()
class DynamicSparseRCNN(SparseRCNN):
    """Dynamic Sparse R-CNN (arXiv 2205.02101): proposals mixed for each image, matched one to many.

    The same detector with other parts by default, see ``dynamic_sparse_rcnn.config_resolution.ARCHITECTURE_PARTS``.
    """


def _pad(images: ImageList, least: tuple[int, int], divisibility: int) -> ImageList:
    """Pads a batch with zeros at the right and the bottom, to a size that the backbone can divide."""
    divisor = max(1, divisibility)
    height, width = (math.ceil(side / divisor) * divisor for side in least)
    missing = (0, max(0, width - images.tensor.shape[-1]), 0, max(0, height - images.tensor.shape[-2]))
    return ImageList(F.pad(images.tensor, missing), images.image_sizes)


def _find_finite(predictions: StagePredictions) -> Tensor:
    """(S, B) bool: no prediction of an image is NaN, infinite, or a box whose area is."""
    # While this is finite, so are the areas of the box and of its hull with any ground truth.
    reach = 2 * predictions.boxes.detach().abs().unflatten(-1, (2, 2)).amax(-2)
    area = reach[..., :1] * reach[..., 1:]
    return torch.cat([predictions.logits.detach(), area], dim=-1).isfinite().flatten(2).all(-1)


def _require_finite(finite: Tensor, batched_inputs: list[ModelInput]) -> None:
    """Args: what ``_find_finite`` found."""
    # The one look of the host at the predictions: without it, NaN would pass for a silent zero AP.
    if finite.all():
        return
    storage = current_event_storage()
    stage = int((~finite).any(1).nonzero()[0])
    images = [
        str(inputs.get("file_name", f"number {number} of the batch"))
        for number, inputs in enumerate(batched_inputs)
        if not finite[stage, number]
    ]
    raise FloatingPointError(
        f"NaN or infinite predictions from stage {stage + 1} of {len(finite)} on, at iteration "
        f"{storage.iter if storage else '(no training loop)'}, image(s) {', '.join(images)}. "
        "Lower SOLVER.BASE_LR, lengthen the warm-up, or, under mixed precision, try without "
        "SOLVER.AMP.ENABLED; then look at these images."
    )


def _check_classes(batched_inputs: list[ModelInput], num_classes: int) -> None:
    """Of ground truths on the host alone, where mappers leave them: a look at others would wait for the device."""
    for number, inputs in enumerate(batched_inputs):
        classes = inputs["instances"].gt_classes
        if classes.device.type == "cpu" and ((classes < 0) | (classes >= num_classes)).any():
            raise ValueError(
                f"image {inputs.get('file_name', f'number {number} of the batch')} has ground truths of the classes "
                f"{classes.unique().tolist()}, but MODEL.SparseRCNN.NUM_CLASSES is {num_classes}: correct either"
            )


def _report_excess_ground_truths(instances: list[Instances], num_proposals: int) -> None:
    # Few images are looked at so closely.
    crowded = [x for x in instances if len(x) > num_proposals]
    excess = sum(max(0, int(_is_target(x).sum()) - num_proposals) for x in crowded)
    storage = current_event_storage()
    if storage is not None:
        storage.put_scalar("ground_truths_without_proposal", excess)
    if excess:
        log_every_n_seconds(
            logging.WARNING,
            f"{excess} ground truths of this batch have no proposal to learn them: an image has more than "
            f"MODEL.SparseRCNN.NUM_PROPOSALS {num_proposals}. Raise it.",
            n=60,
        )


def _is_target(instances: Instances) -> Tensor:
    """(N,) bool: neither boxes without extent nor crowd regions are targets."""
    nonempty: Tensor = instances.gt_boxes.nonempty()
    return nonempty & ~instances.gt_is_crowd if instances.has("gt_is_crowd") else nonempty
