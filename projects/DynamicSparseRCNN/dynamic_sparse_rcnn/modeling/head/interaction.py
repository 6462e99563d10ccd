"""Dynamic instance interaction between proposals and their RoI features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DynamicConv(nn.Module):
    """Dynamic instance interaction (Sparse R-CNN, section 3.2): each proposal filters its own RoI features.

    Two 1x1 convolutions, from C to D to C channels, whose weights are a linear function of the proposal's feature, and
    then a linear layer over all positions and channels.

    Attributes:
        recomputing_devices: device types on which the output of the last norm and activation is recomputed in the
            backward pass instead of kept. It is the largest tensor of a stage, and cheap to compute. CPUs have enough
            memory, and the overhead is noticeable for small models.
    """

    recomputing_devices: frozenset[str] = frozenset({"cuda"})

    def __init__(self, *, channels: int, dynamic_channels: int, pooler_resolution: int) -> None:
        """
        Args:
            channels: C, channels of proposal features and RoI features.
            dynamic_channels: D, channels between the two convolutions.
            pooler_resolution: R, side of the pooled RoIs, in cells.
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
            (B * P, C).
        """
        first, second = self.dynamic_layer(proposal_features).chunk(2, dim=1)
        features = torch.bmm(roi_features, first.view(-1, self.channels, self.dynamic_channels))
        if features.dtype == torch.float16 and torch.is_grad_enabled():
            features = _without_gradient_beyond_the_image(features, roi_features)
        features = F.relu(self.norm1(features))
        features = torch.bmm(features, second.view(-1, self.dynamic_channels, self.channels))
        if self.training and torch.is_grad_enabled() and features.device.type in self.recomputing_devices:
            # Recomputation stops at the input of the linear layer: its product is not repeated.
            reduced = checkpoint(self._reduce, features, use_reentrant=False, preserve_rng_state=False)
        else:
            reduced = self._reduce(features)
        return F.relu(self.norm3(reduced))

    def _reduce(self, features: Tensor) -> Tensor:
        """Maps (B * P, R * R, C) to (B * P, C)."""
        reduced: Tensor = self.out_layer(F.relu(self.norm2(features), inplace=True).flatten(1))
        return reduced


def _without_gradient_beyond_the_image(features: Tensor, roi_features: Tensor) -> Tensor:
    """Returns ``features``, (B * P, R * R, D), without gradients for cells whose RoI features are all zero.

    RoIAlign returns zeros where an RoI extends beyond the image. In the backward pass, two layer norms divide the
    gradient of such a cell by sqrt(eps), which overflows in float16. Then infinity times the cell's zeros gives NaN in
    the gradient of the weights. Without the overflow that gradient would be zero, so nothing is lost here.

    Args:
        features: (B * P, R * R, D).
        roi_features: (B * P, R * R, C).
    """
    return features.masked_fill((roi_features == 0).all(-1, keepdim=True), 0.0)
