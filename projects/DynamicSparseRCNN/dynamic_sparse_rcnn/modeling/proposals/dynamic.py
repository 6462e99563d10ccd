"""Dynamic proposal generation: for each image, proposals are a mixture of several experts' proposals."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..events import current_event_storage
from ..structures import image_sizes_to_whwh
from .learned import gather_features, initial_boxes
from .router import ExpertRouter, ImageSizes
from .static_start import start_from_static_checkpoints

# Default share of the schedule in which the temperature falls.
_ANNEALED_SHARE = 10 / 36


@dataclass(frozen=True)
class TemperatureSchedule:
    """The temperature of the softmax over experts: it falls linearly from ``start`` to ``end``, then stays.

    It is high at first so that all experts learn, as in Dynamic Convolution (arXiv 1912.03458). It depends on the
    iteration only, so there is no state to save for resuming.
    """

    start: float
    end: float
    num_iters: int

    def __post_init__(self) -> None:
        if self.start <= 0 or self.end <= 0 or self.num_iters < 0:
            raise ValueError(
                "MODEL.SparseRCNN.DPG needs TEMPERATURE > 0, TEMPERATURE_END > 0 and TEMPERATURE_ITERS >= 0, "
                f"got {self.start}, {self.end}, {self.num_iters}"
            )

    @classmethod
    def of_training(cls, start: float, end: float, num_iters: int, max_iter: int) -> TemperatureSchedule:
        """The schedule of a training of ``max_iter`` iterations; ``num_iters`` 0 stands for 10/36 of them."""
        return cls(start, end, num_iters or round(_ANNEALED_SHARE * max_iter))

    def __call__(self, iteration: int) -> float:
        """Returns the temperature at an iteration, counted from 0."""
        done = min(1.0, iteration / self.num_iters) if self.num_iters else 1.0
        return self.start + (self.end - self.start) * done


@PROPOSAL_GENERATOR_REGISTRY.register()
class DynamicProposalGenerator(nn.Module):
    """Proposals mixed for each image from E experts (Dynamic Sparse R-CNN, arXiv 2205.02101, section 3.3).

    Each expert has P learned boxes and features. For each image and proposal, an :class:`ExpertRouter` computes the
    weights of the experts; boxes and features are mixed with the same weights.

    The parameters are named ``expert_proposal_*``, (E * P, .), expert by expert. If a static checkpoint is loaded, all
    experts start from its proposals. With a single expert there is no router, and the module equals
    :class:`LearnedProposalGenerator`, including parameter names.
    """

    @configurable
    def __init__(
        self,
        *,
        num_proposals: int,
        channels: int,
        init_boxes: str,
        init_feature_spread: float = 1.0,
        num_experts: int,
        expert_init: float,
        levels: dict[str, ShapeSpec],
        hidden_channels: int,
        pool_size: int,
        temperature: TemperatureSchedule,
    ) -> None:
        """
        Args:
            num_proposals: P.
            channels: C, channels of the proposal features.
            init_boxes: initial boxes of the first expert, the ``kind`` of :func:`initial_boxes`.
            init_feature_spread: of its features, the ``spread`` of :func:`gather_features`.
            num_experts: E.
            expert_init: how far from the first expert the others start, see :meth:`spread`; in [0, 1).
            levels: the router's input feature maps, finest first: channels and stride by name.
            hidden_channels: hidden channels of the router.
            pool_size: side of the router's pooled map, in cells.
            temperature: temperature of the softmax over the experts in training; inference uses its end.
        """
        super().__init__()
        _check_sizes(num_proposals, num_experts, hidden_channels, pool_size, expert_init)
        self.num_experts = num_experts
        self.num_proposals = num_proposals
        self.expert_init = expert_init
        self.temperature = temperature
        self.in_features = list(levels)
        self._kind = "init" if num_experts == 1 else "expert"
        features = nn.Embedding(num_experts * num_proposals, channels)
        boxes = nn.Embedding(num_experts * num_proposals, 4)
        self.add_module(f"{self._kind}_proposal_features", features)
        self.add_module(f"{self._kind}_proposal_boxes", boxes)
        first = gather_features(features.weight.detach()[:num_proposals].clone(), init_feature_spread)
        start = self.spread(initial_boxes(init_boxes, num_proposals), first)
        with torch.no_grad():
            for embedding, values in zip((boxes, features), start, strict=True):
                embedding.weight.copy_(values)
        if num_experts > 1:
            self.router = ExpertRouter(
                list(levels.values()),
                num_experts=num_experts,
                num_proposals=num_proposals,
                hidden_channels=hidden_channels,
                pool_size=pool_size,
            )
            start_from_static_checkpoints(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        node, dpg = cfg.MODEL.SparseRCNN, cfg.MODEL.SparseRCNN.DPG
        names = _router_levels(cfg, input_shape)
        return {
            "num_proposals": node.NUM_PROPOSALS,
            "channels": node.HIDDEN_DIM,
            "init_boxes": node.INIT_BOXES,
            "init_feature_spread": node.INIT_FEATURE_SPREAD,
            "num_experts": dpg.NUM_EXPERTS,
            "expert_init": dpg.EXPERT_INIT,
            "levels": {name: input_shape[name] for name in names},
            "hidden_channels": dpg.HIDDEN_DIM,
            "pool_size": dpg.POOL_SIZE,
            "temperature": TemperatureSchedule.of_training(
                dpg.TEMPERATURE, dpg.TEMPERATURE_END, dpg.TEMPERATURE_ITERS, cfg.SOLVER.MAX_ITER
            ),
        }

    @property
    def expert_boxes(self) -> Tensor:
        """(E, P, 4) learned boxes, normalized cxcywh."""
        return self._experts("boxes")

    @property
    def expert_features(self) -> Tensor:
        """(E, P, C) learned features."""
        return self._experts("features")

    def _experts(self, what: str) -> Tensor:
        embedding = self.get_submodule(f"{self._kind}_proposal_{what}")
        assert isinstance(embedding, nn.Embedding)
        return embedding.weight.unflatten(0, (self.num_experts, self.num_proposals))

    @torch.no_grad()
    def spread(self, boxes: Tensor, features: Tensor, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Computes the initial values of all experts: the first equals the input, the others get random offsets.

        With ``expert_init`` s, boxes are moved by up to s/2 of their size and resized by up to s of it. Features are
        changed by up to s of their root mean square. With three experts or more, the offsets add up to zero, so that
        equal weights give the first expert.

        Args:
            boxes: (P, 4), normalized cxcywh.
            features: (P, C).
            rng: generator of the offsets; None: torch's global one.

        Returns:
            Boxes (E * P, 4) and features (E * P, C).
        """
        extent = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
        size = features.square().mean().sqrt()
        return (
            self._spread(boxes, self.expert_init * extent, rng),
            self._spread(features, self.expert_init * size, rng),
        )

    def _spread(self, values: Tensor, reach: Tensor, rng: torch.Generator | None) -> Tensor:
        others = self.num_experts - 1
        if others == 0:  # without drawing random numbers, so that all later ones are as with static proposals
            return values
        # Cosines of evenly spaced angles are in [-1, 1] and add up to zero.
        turn = torch.rand(values.shape, generator=rng) + (torch.arange(others) / others)[:, None, None]
        offsets = torch.cos(2 * math.pi * turn).to(values)
        return torch.cat([values[None], values + reach * offsets]).flatten(0, 1)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Generates proposals, with the interface of detectron2's proposal generators. Ignores ground truths.

        Returns:
            An ``Instances`` per image with ``proposal_boxes`` (P, absolute XYXY pixels), ``proposal_features`` (P, C)
            and ``expert_weights`` (P, E); and an empty dict of losses.
        """
        weights = self.expert_weights(features, images.image_sizes)
        boxes, proposal_features = self.mix(weights)
        whwh = image_sizes_to_whwh(images.image_sizes, boxes.device)
        boxes = box_convert(boxes, "cxcywh", "xyxy") * whwh[:, None]
        return [
            Instances(size, proposal_boxes=Boxes(b), proposal_features=f, expert_weights=w.T)
            for size, b, f, w in zip(images.image_sizes, boxes, proposal_features, weights, strict=True)
        ], {}

    def expert_weights(self, features: dict[str, Tensor], image_sizes: ImageSizes) -> Tensor:
        """Computes the (B, E, P) float32 weights of the experts, which add up to 1 for each proposal."""
        if self.num_experts == 1:
            # Tracing would take a tensor's len() for a constant.
            number = image_sizes.shape[0] if isinstance(image_sizes, Tensor) else len(image_sizes)
            return self.expert_boxes.new_ones(number, 1, self.num_proposals)
        temperature = self._current_temperature()
        logits = self.router([features[name] for name in self.in_features], image_sizes)
        return (logits / temperature).softmax(1)

    def mix(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes the experts with (B, E, P) weights: boxes (B, P, 4), normalized cxcywh, and features (B, P, C)."""
        with torch.autocast(weights.device.type, enabled=False):
            boxes = torch.einsum("bep,epk->bpk", weights, self.expert_boxes)
            return boxes, torch.einsum("bep,epc->bpc", weights, self.expert_features)

    def _current_temperature(self) -> float:
        if not self.training:
            return self.temperature.end
        storage = current_event_storage()
        if storage is None:
            if self.temperature.start != self.temperature.end:
                message = (
                    "Training without an EventStorage has no iteration number: the temperature of the experts' softmax "
                    "is not annealed but stays at DPG.TEMPERATURE_END"
                )
                log_first_n(logging.WARNING, message, key="message")
            return self.temperature.end
        temperature = self.temperature(storage.iter)
        storage.put_scalar("dpg/temperature", temperature, smoothing_hint=False)
        return temperature


def feature_levels(names: Sequence[str], strides: Sequence[int], channels: int) -> dict[str, ShapeSpec]:
    """Builds the ``levels`` of a generator in lazy configs: the feature maps of a pyramid by name, finest first."""
    return {name: ShapeSpec(channels=channels, stride=stride) for name, stride in zip(names, strides, strict=True)}


def _router_levels(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> list[str]:
    dpg = cfg.MODEL.SparseRCNN.DPG
    names = list(dpg.IN_FEATURES or cfg.MODEL.ROI_HEADS.IN_FEATURES)
    if unknown := [name for name in names if name not in input_shape]:
        raise ValueError(
            f"MODEL.SparseRCNN.DPG.IN_FEATURES (or, if it is empty, MODEL.ROI_HEADS.IN_FEATURES) has {unknown}, which "
            f"the backbone does not give: choose from {sorted(input_shape)}"
        )
    return names if dpg.STAIRCASE else names[-1:]


def _check_sizes(
    num_proposals: int, num_experts: int, hidden_channels: int, pool_size: int, expert_init: float
) -> None:
    if num_proposals < 1:
        raise ValueError(f"MODEL.SparseRCNN.NUM_PROPOSALS is {num_proposals}: at least 1 is needed")
    if min(num_experts, hidden_channels, pool_size) < 1 or not 0 <= expert_init < 1:
        raise ValueError(
            "MODEL.SparseRCNN.DPG needs NUM_EXPERTS, HIDDEN_DIM and POOL_SIZE of at least 1 and EXPERT_INIT in [0, 1), "
            f"got {num_experts}, {hidden_channels}, {pool_size}, {expert_init}"
        )
