"""The router of dynamic proposal generation: from an image's feature maps to weights of the experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..structures import integers_on_device

ImageSizes = Sequence[tuple[int, int]] | Tensor


class ExpertRouter(nn.Module):
    """The staircase (Dynamic Sparse R-CNN, section 3.3): the logits of each proposal's experts for each image.

    From the finest level down, each level is concatenated with what came before it and halved by a depthwise
    3x3 convolution. What is left is summed over channels, resized to a square, standardised and classified by two
    linear layers. With a single level there is nothing to aggregate.

    Only an image's own cells are looked at: what a batch pads an image with counts as zeros, like what a
    convolution pads a map with. All behind the convolutions is float32, also under autocast.

    The square is standardised (mean 0, variance 1), for the scale of feature maps is the backbone's own and changes
    while it learns; the logits' would change with it, and so what the softmax's temperature means.

    The sums of the linear layers are divided by the root of the number of their terms, and their weights start
    larger for it. What they compute is the same; how fast they learn is not: Adam moves each weight by about the
    learning rate, however small its gradient, so that a sum of a thousand weighted terms runs away in a few
    dozen steps, and a softmax that has settled on one expert for all images does not come back. A temperature does not
    prevent that, as it does with plain gradient descent, for Adam does not look at the scale of gradients.
    """

    def __init__(
        self,
        levels: Sequence[ShapeSpec],
        *,
        num_experts: int,
        num_proposals: int,
        hidden_channels: int,
        pool_size: int,
    ) -> None:
        """
        Args:
            levels: channels and stride of each level, from the finest on, each stride twice the one before.
            num_experts: E.
            num_proposals: P.
            hidden_channels: of the layer between the two linear ones.
            pool_size: side of the square.

        Raises:
            ValueError: there is no level, or strides do not double.
        """
        super().__init__()
        self.strides = [int(level.stride) for level in levels]
        if not self.strides or any(2 * a != b for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise ValueError(
                f"the levels have the strides {self.strides}: dynamic proposal generation needs one level or more, "
                "each with twice the stride of the one before. Correct MODEL.SparseRCNN.DPG.IN_FEATURES or, if it is "
                "empty, MODEL.ROI_HEADS.IN_FEATURES."
            )
        self.num_experts = num_experts
        self.pool_size = pool_size
        self.downsamplings = nn.ModuleList()
        channels = 0
        for level in levels:
            channels += int(level.channels)
            self.downsamplings.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels))
        self.hidden = nn.Linear(pool_size**2, hidden_channels)
        self.logits = nn.Linear(hidden_channels, num_experts * num_proposals)
        self._init_weights()

    def _init_weights(self) -> None:
        for layer in (*self.downsamplings, self.hidden, self.logits):
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.hidden.weight)
        # Small: all experts start with about the same weight, but not with zero, which would stop the gradients.
        nn.init.normal_(self.logits.weight, std=0.1)

    def forward(self, features: Sequence[Tensor], image_sizes: ImageSizes) -> Tensor:
        """
        Args:
            features: (B, C, H, W) of each level.
            image_sizes: B pairs of height and width in pixels, without padding; or (B, 2) int64, which can be traced.

        Returns:
            (B, E, P) logits, float32 also under autocast.
        """
        aggregated: Tensor | None = None
        for feature, stride, downsampling in zip(features, self.strides, self.downsamplings, strict=True):
            aggregated = feature if aggregated is None else torch.cat([aggregated, feature], dim=1)
            aggregated = downsampling(_zero_outside(aggregated, _own_cells(image_sizes, stride)))
        assert aggregated is not None
        with torch.autocast(aggregated.device.type, enabled=False):
            pooled = self._pool(aggregated, _own_cells(image_sizes, 2 * self.strides[-1])).flatten(1)
            standardised = F.layer_norm(pooled, pooled.shape[1:])
            hidden = F.relu(self.hidden(standardised / self.hidden.in_features**0.5))
            logits = self.logits(hidden / self.logits.in_features**0.5)
        return logits.unflatten(1, (self.num_experts, -1))

    def _pool(self, aggregated: Tensor, own_cells: ImageSizes) -> Tensor:
        """(B, C, H, W) to (B, side, side), each image's own cells alone. Resizing and the sum commute."""
        height, width = aggregated.shape[2:]
        summed = aggregated.sum(1, dtype=torch.promote_types(aggregated.dtype, torch.float32))
        rows, columns = _as_tensor(own_cells, summed.device).to(summed.dtype).unbind(1)
        return _resizing(rows, height, self.pool_size) @ summed @ _resizing(columns, width, self.pool_size).mT


def _as_tensor(own_cells: ImageSizes, device: torch.device) -> Tensor:
    return own_cells if isinstance(own_cells, Tensor) else integers_on_device(own_cells, device)


def _own_cells(image_sizes: ImageSizes, stride: int) -> ImageSizes:
    """Rows and columns of a map of this stride that images reach into."""
    if isinstance(image_sizes, Tensor):
        return -(-image_sizes // stride)
    return [(-(-height // stride), -(-width // stride)) for height, width in image_sizes]


def _zero_outside(maps: Tensor, own_cells: ImageSizes) -> Tensor:
    """Zeros the cells of (B, C, H, W) that are not the image's own."""
    height, width = maps.shape[2:]
    if not isinstance(own_cells, Tensor) and all(rows >= height and columns >= width for rows, columns in own_cells):
        return maps
    rows, columns = _as_tensor(own_cells, maps.device)[:, :, None].unbind(1)
    outside_rows = torch.arange(height, device=maps.device) >= rows
    outside_columns = torch.arange(width, device=maps.device) >= columns
    return maps.masked_fill((outside_rows[:, :, None] | outside_columns[:, None, :])[:, None], 0.0)


def _resizing(own_cells: Tensor, length: int, side: int) -> Tensor:
    """(B, side, length) weights that resize each image's own cells, (B,) floats, the first of ``length``, to ``side``.

    Bilinear with antialiasing, as ``F.interpolate`` does it for images that are all of one size: a triangle around each
    sample, as wide as the distance between samples, or between cells where that is more.
    """
    own = own_cells.clamp(max=length)[:, None, None]
    distance = own / side
    middles = (torch.arange(side, device=own.device)[:, None] + 0.5) * distance
    cells = torch.arange(length, device=own.device)
    weights = (1 - (cells + 0.5 - middles).abs() / distance.clamp(min=1)).clamp(min=0) * (cells < own)
    return weights / weights.sum(-1, keepdim=True)
