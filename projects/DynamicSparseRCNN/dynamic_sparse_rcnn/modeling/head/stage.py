"""One stage of the cascade: attention among proposals, interaction with their RoIs, prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .interaction import DynamicConv

#: Activations of the feed-forward network.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class DynamicStage(nn.Module):
    """One stage: self-attention among proposals, interaction with RoI features, feed-forward network, predictions."""

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_attention_heads: int,
        feedforward_channels: int,
        dynamic_channels: int,
        pooler_resolution: int,
        num_class_layers: int,
        num_box_layers: int,
        dropout: float,
        activation: str,
    ) -> None:
        """
        Args:
            num_classes: K.
            channels: C, channels of proposal features and feature maps.
            num_attention_heads: heads of the self-attention; C must be a multiple.
            feedforward_channels: hidden channels of the feed-forward network.
            dynamic_channels: channels between the two dynamic convolutions.
            pooler_resolution: R, side of the pooled RoIs, in cells.
            num_class_layers: number of layers before the class logits.
            num_box_layers: number of layers before the box deltas.
            dropout: dropout probability in attention and feed-forward network.
            activation: activation of the feed-forward network, a key of ``ACTIVATIONS``.
        """
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, num_attention_heads, dropout, batch_first=True)
        self.inst_interact = DynamicConv(
            channels=channels, dynamic_channels=dynamic_channels, pooler_resolution=pooler_resolution
        )
        self.linear1 = nn.Linear(channels, feedforward_channels)
        self.linear2 = nn.Linear(feedforward_channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]
        self.cls_module = _prediction_layers(channels, num_class_layers)
        self.reg_module = _prediction_layers(channels, num_box_layers)
        self.class_logits = nn.Linear(channels, num_classes)
        self.bboxes_delta = nn.Linear(channels, 4)

    def forward(self, proposal_features: Tensor, roi_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the stage.

        Args:
            proposal_features: (B, P, C).
            roi_features: (B * P, R * R, C).

        Returns:
            Class logits (B, P, K), box deltas (B, P, 4) for ``Box2BoxTransform``, and proposal features (B, P, C) for
            the next stage.
        """
        features = proposal_features
        attended, _ = self.self_attn(features, features, features, need_weights=False)
        features = self.norm1(features + self.dropout(attended))
        interacted = self.inst_interact(features.flatten(0, 1), roi_features).view_as(features)
        features = self.norm2(features + self.dropout(interacted))
        transformed = self.linear2(self.dropout(self.activation(self.linear1(features))))
        features = self.norm3(features + self.dropout(transformed))
        logits = self.class_logits(_apply_layers(self.cls_module, features))
        deltas = self.bboxes_delta(_apply_layers(self.reg_module, features))
        return logits, deltas, features

    def init_weights(self, prior_probability: float) -> None:
        """Initializes weight matrices by Xavier's method, and class biases to the prior probability."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior_probability) / prior_probability))


def _prediction_layers(channels: int, number: int) -> nn.ModuleList:
    """Returns a flat list with three modules per layer. Names in public checkpoints depend on this numbering."""
    layers = nn.ModuleList()
    for _ in range(number):
        layers.extend([nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU()])
    return layers


def _apply_layers(layers: nn.ModuleList, features: Tensor) -> Tensor:
    for layer in layers:
        features = layer(features)
    return features


def build_stages(num_stages: int, **arguments: Any) -> list[DynamicStage]:
    """Builds stages with equal arguments, those of :class:`DynamicStage`."""
    return [DynamicStage(**arguments) for _ in range(num_stages)]
