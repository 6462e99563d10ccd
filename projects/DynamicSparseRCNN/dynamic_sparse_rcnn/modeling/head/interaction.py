"""Dynamic instance interaction: each proposal filters its own RoI."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DynamicConv(nn.Module):
    """Dynamic instance interaction (Sparse R-CNN, section 3.2): each proposal filters its own RoI.

    Two 1x1 convolutions, C to D to C channels, whose weights are a linear function of the proposal's
    feature, then a linear layer over all positions and channels.

    Attributes:
        recomputing_devices: where what the last norm and activation give is computed again in the backward pass rather
            than kept. It is the largest tensor of a stage, under autocast of float32, and cheap; but CPUs have the
            memory, and small problems notice the overhead there.
    """

    recomputing_devices: frozenset[str] = frozenset({"cuda"})

    def __init__(self, *, channels: int, dynamic_channels: int, pooler_resolution: int) -> None:
        """
        Args:
            channels: C, of the proposal features and the RoI features.
            dynamic_channels: D, between the two convolutions.
            pooler_resolution: side R of the pooled RoIs, in cells.
        """
        super().__init__()
        self.channels = channels
        self.dynamic_channels = dynamic_channels
        self.dynamic_layer = nn.Linear(channels, 2 * channels * dynamic_channels)
        self.norm1 = nn.LayerNorm(dynamic_channels)
        self.norm2 = nn.LayerNorm(channels)
        self.out_layer = nn.Linear(channels * pooler_resolution**2, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, proposal_features: Tensor, roi_features: Tensor) -> Tensor:
        """
        Args:
            proposal_features: (B * P, C).
            roi_features: (B * P, R * R, C).

        Returns:
            (B * P, C) what the proposals saw.
        """
        first, second = self.dynamic_layer(proposal_features).chunk(2, dim=1)
        features = torch.bmm(roi_features, first.view(-1, self.channels, self.dynamic_channels))
        if features.dtype == torch.float16 and torch.is_grad_enabled():
            features = _without_gradient_beyond_the_image(features, roi_features)
        features = F.relu(self.norm1(features))
        features = torch.bmm(features, second.view(-1, self.dynamic_channels, self.channels))
        if self.training and torch.is_grad_enabled() and features.device.type in self.recomputing_devices:
            # The product, which is last, is not repeated.
            reduced = checkpoint(self._reduce, features, use_reentrant=False, preserve_rng_state=False)
        else:
            reduced = self._reduce(features)
        return F.relu(self.norm3(reduced))

    def _reduce(self, features: Tensor) -> Tensor:
        """(B * P, R * R, C) to (B * P, C)."""
        reduced: Tensor = self.out_layer(F.relu(self.norm2(features), inplace=True).flatten(1))
        return reduced


def _without_gradient_beyond_the_image(features: Tensor, roi_features: Tensor) -> Tensor:
    """(B * P, R * R, D): the same, but cells whose RoI features (B * P, R * R, C) are zero get no gradient.

    RoIAlign gives zeros where a RoI reaches beyond the image. Two norms divide the gradient of such a cell by the root
    of epsilon each, which is too much for float16, and infinity times what the cell has seen, zeros, is NaN for the
    weights. Without overflow it would be zero for them, and RoIAlign's backward has no use for it.
    """
    return features.masked_fill((roi_features == 0).all(-1, keepdim=True), 0.0)
