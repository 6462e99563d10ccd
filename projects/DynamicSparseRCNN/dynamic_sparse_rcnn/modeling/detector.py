"""The detector: backbone, proposal generator, dynamic head and criterion, as a detectron2 meta-architecture."""

from __future__ import annotations

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
from torch import Tensor, nn

from ..checkpoints.names import use_public_names
from ..config_resolution import choose_nms_threshold, find_registered, resolved_copy
from .guards import check_classes, find_finite, report_excess_ground_truths, require_finite
from .head.head import DynamicHead
from .losses.criterion import build_criterion
from .structures import BatchedTargets, ModelInput, StagePredictions, image_sizes_to_whwh

# How many of an image's best pairs of proposal and class NMS gets.
NMS_CANDIDATES = 1000


@META_ARCH_REGISTRY.register()
class SparseRCNN(nn.Module):
    """Sparse R-CNN (arXiv 2011.12450): learned proposals, refined by a cascade, matched one to one.

    A detector that predicts more derives from this class: it sets ``head_class``, and overrides :meth:`further_fields`
    to add its outputs to the detections. One whose losses need more ground truth sets ``targets_class``.
    """

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
        channels_last: bool = False,
    ) -> None:
        """
        Args:
            backbone: returns a dict of feature maps.
            proposal_generator: as in detectron2; its proposals have ``proposal_boxes`` and ``proposal_features``.
            head: refines the proposals.
            criterion: maps ``(StagePredictions, BatchedTargets)`` to weighted losses.
            num_detections: maximum number of detections per image; -1: no limit.
            nms_threshold: NMS drops a box whose IoU with a better box of its class is above this; 1: no NMS; None: as
                the criterion's matcher needs.
            pixel_mean: mean of each channel of the input images, which are 0..255.
            pixel_std: standard deviation of each channel.
            channels_last: whether the backbone's weights and maps have their channels side by side in memory. The same
                values, faster on CPUs that multiply bfloat16.

        Raises:
            ValueError: the criterion's matcher is one-to-many, and ``nms_threshold`` is 1.
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
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        use_public_names(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        cfg = resolved_copy(cfg)
        backbone = build_backbone(cfg)
        name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
        build_generator = find_registered(PROPOSAL_GENERATOR_REGISTRY, name, "MODEL.PROPOSAL_GENERATOR.NAME")
        return {
            "backbone": backbone,
            "proposal_generator": build_generator(cfg, backbone.output_shape()),
            "head": cls.head_class(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg),
            "num_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "nms_threshold": cfg.MODEL.SparseRCNN.NMS_THRESHOLD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }

    @property
    def init_proposal_boxes(self) -> nn.Module:
        """The learned boxes by their public name. fvcore looks for them here when a checkpoint's shapes differ."""
        return self.proposal_generator.get_submodule("init_proposal_boxes")

    @property
    def init_proposal_features(self) -> nn.Module:
        """The learned features by their public name."""
        return self.proposal_generator.get_submodule("init_proposal_features")

    @property
    def device(self) -> torch.device:
        """The device of the parameters. Inputs are moved there."""
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
            batched_inputs: detectron2's dicts. ``image`` is (3, H, W) in ``INPUT.FORMAT``, 0..255. Training needs
                ``instances`` with ``gt_boxes`` and ``gt_classes``. At inference ``height`` and ``width`` give the
                image size that the detections are scaled to; default: the size of ``image``.
            do_postprocess: whether to scale the detections; at inference only.
            divisor: what the criterion divides the summed losses by, in training only, see
                :meth:`.SetCriterion.forward`; None: its own count.
            pad_to: minimum height and width of the padded batch, in pixels.

        Returns:
            In training, a dict of weighted scalar losses. At inference, a list of ``{"instances": Instances}`` with
            ``pred_boxes``, ``scores`` and ``pred_classes``, best first; without ``do_postprocess``, a list of
            ``Instances`` in pixels of the network input.

        Raises:
            FloatingPointError: a prediction is NaN or infinite, or a box is so large that its area is; names the
                stage, the images and the iteration.
            ValueError: the class of a ground truth is not in [0, K); names the image.
        """
        images = self.preprocess_image(batched_inputs, pad_to)
        predictions = self.predict(images)
        if self.training:
            return self._compute_losses(predictions, batched_inputs, divisor)
        require_finite(find_finite(predictions), batched_inputs)
        detections = self.detect(predictions.last, images.image_sizes)
        if not do_postprocess:
            return detections
        return [
            {"instances": detector_postprocess(x, inputs.get("height", size[0]), inputs.get("width", size[1]))}
            for x, inputs, size in zip(detections, batched_inputs, images.image_sizes, strict=True)
        ]

    @torch.no_grad()
    def count(self, batched_inputs: list[ModelInput], *, pad_to: tuple[int, int] | None = None) -> Tensor:
        """The criterion's count for these images, on this rank: what it would divide their losses by.

        The detector runs only if the count depends on its predictions. The counts of the parts of a batch add up to the
        count of the batch.

        Args:
            batched_inputs: see :meth:`forward`; with ``instances``.
            pad_to: see :meth:`forward`.
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
        check_classes(batched_inputs, predictions.logits.shape[3])
        report_excess_ground_truths(instances, predictions.boxes.shape[2])
        finite = find_finite(predictions)
        targets = self.targets_class.from_instances(instances, self.device)
        # A user's criterion may have no divisor argument.
        options = {} if divisor is None else {"divisor": divisor}
        try:
            losses: dict[str, Tensor] = self.criterion(predictions, targets, **options)
        except Exception:  # for example SciPy's, which cannot match NaN
            require_finite(finite, batched_inputs)
            raise
        # Only now, since it waits for the device: the criterion's kernels are queued.
        require_finite(finite, batched_inputs)
        return losses

    def preprocess_image(self, batched_inputs: list[ModelInput], pad_to: tuple[int, int] | None = None) -> ImageList:
        """Normalizes the images and pads them to one size, at least ``pad_to`` (height, width) pixels."""
        # Without waiting for a GPU, which may still be busy with the previous step.
        asynchronous = self.device.type == "cuda"
        images = [x["image"].to(self.device, non_blocking=asynchronous) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        batch = ImageList.from_tensors(images, self.backbone.size_divisibility)
        batch.tensor = batch.tensor.contiguous(memory_format=self._memory_format)
        return batch if pad_to is None else _pad(batch, pad_to, self.backbone.size_divisibility)

    def propose(self, images: ImageList) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Returns the backbone's feature maps, (B, P, 4) proposal boxes in XYXY pixels and (B, P, C) features.

        Raises:
            ValueError: the proposal generator has losses of its own, which nothing would train.
        """
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features)
        if losses:
            raise ValueError(
                f"{type(self.proposal_generator).__name__} returns {', '.join(losses)}, but losses of a proposal "
                "generator are not trained: return none, and name a LossTerm in MODEL.SparseRCNN.LOSSES, which sees "
                "the proposals as predictions.initial_boxes"
            )
        boxes = torch.stack([x.proposal_boxes.tensor for x in proposals])
        return features, boxes, torch.stack([x.proposal_features for x in proposals])

    def predict(self, images: ImageList) -> StagePredictions:
        """Returns the predictions of all stages."""
        return self.head(*self.propose(images))

    def detect(self, predictions: StagePredictions, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """Returns the pairs of proposal and class with the best scores of each image, best first.

        Args:
            predictions: of the last stage, (1, B, P, .).
            image_sizes: height and width of each image without padding; boxes are clipped to them.
        """
        scores = predictions.logits[0].detach().float().sigmoid()
        _, proposals, classes = scores.shape
        # More candidates than detections, since NMS will drop some.
        wanted = self.num_detections if self.nms_threshold >= 1 else max(self.num_detections, NMS_CANDIDATES)
        scores, index = scores.flatten(1).topk(min(wanted, proposals * classes))
        proposal = index // classes
        boxes = predictions.boxes[0].detach().gather(1, proposal[..., None].expand(-1, -1, 4))
        # All images at once: Boxes.clip would synchronize with the device for each image.
        boxes = boxes.clamp(min=0).minimum(image_sizes_to_whwh(image_sizes, boxes.device)[:, None])
        # By image only to wrap views: detectron2's Instances are of one image.
        detections = [
            Instances(size, pred_boxes=Boxes(b), scores=s, pred_classes=i % classes)
            for size, b, s, i in zip(image_sizes, boxes, scores, index, strict=True)
        ]
        for name, values in self.further_fields(predictions, proposal).items():
            for instances, own in zip(detections, values, strict=True):
                instances.set(name, own)
        return [self._suppress(x) for x in detections]

    def further_fields(self, predictions: StagePredictions, proposal: Tensor) -> dict[str, Tensor]:
        """Returns fields of the detections besides box, score and class. For subclasses that predict more.

        Args:
            predictions: of the last stage, (1, B, P, .).
            proposal: (B, D) int64, the index of the proposal that each detection comes from.

        Returns:
            The (B, D, ...) values of each field by its name.
        """
        return {}

    def _suppress(self, detections: Instances) -> Instances:
        if self.nms_threshold >= 1:
            return detections
        # By image: images keep different numbers of boxes, and offsets for more of them would cost float32 precision.
        boxes = detections.pred_boxes.tensor
        keep = batched_nms(boxes, detections.scores, detections.pred_classes, self.nms_threshold)
        return detections[keep[: self.num_detections]]


@META_ARCH_REGISTRY.register()
class DynamicSparseRCNN(SparseRCNN):
    """Dynamic Sparse R-CNN (arXiv 2205.02101): proposals depend on the image, matching is one-to-many.

    It is the same detector with other defaults, see ``config_resolution.ARCHITECTURE_PARTS``.
    """


def _pad(images: ImageList, least: tuple[int, int], divisibility: int) -> ImageList:
    """Pads a batch with zeros, right and bottom, to at least ``least`` and to a multiple of ``divisibility``."""
    divisor = max(1, divisibility)
    height, width = (math.ceil(side / divisor) * divisor for side in least)
    missing = (0, max(0, width - images.tensor.shape[-1]), 0, max(0, height - images.tensor.shape[-2]))
    return ImageList(F.pad(images.tensor, missing), images.image_sizes)
