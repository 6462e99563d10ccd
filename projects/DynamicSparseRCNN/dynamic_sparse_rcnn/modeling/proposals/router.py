"""The router of dynamic proposal generation: computes weights of the experts from an image's feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..structures import integers_on_device

ImageSizes = Sequence[tuple[int, int]] | Tensor


class ExpertRouter(nn.Module):
    """The staircase router (Dynamic Sparse R-CNN, section 3.3): computes the logits of the experts for each proposal.

    From the finest level to the coarsest, each level is concatenated with the result so far and downsampled by a
    depthwise 3x3 convolution with stride 2. The result is summed over channels, resized to a square, standardized and
    classified by two linear layers. A single level is not aggregated.

    Batch padding is treated like the zero padding of convolutions. Everything after the convolutions is computed in
    float32, also under autocast.

    The square is standardized (mean 0, std 1) because the scale of feature maps changes during training. The scale of
    the logits, and thus the meaning of the temperature, would change with it.

    The outputs of the linear layers are divided by the square root of their number of inputs, and their weights start
    larger in return. The initial function is the same, but it learns more slowly: Adam changes each weight by about the
    learning rate, however small its gradient is, so a sum over a thousand inputs changes a lot in a few dozen steps. A
    softmax that has settled on one expert for all images does not recover. A high temperature does not prevent this,
    since Adam is invariant to the scale of gradients.
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
            levels: channels and stride of each level, finest first; each stride is twice the previous one.
            num_experts: E.
            num_proposals: P.
            hidden_channels: channels between the two linear layers.
            pool_size: side of the square, in cells.

        Raises:
            ValueError: there is no level, or strides do not double.
        """
        super().__init__()
        self.strides = [int(level.stride) for level in levels]
        if not self.strides or any(2 * a != b for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise ValueError(
                f"the router's levels have the strides {self.strides}: it needs at least one level, and each stride "
                "must be twice the previous one. Correct MODEL.SparseRCNN.DPG.IN_FEATURES or, if it is empty, "
                "MODEL.ROI_HEADS.IN_FEATURES."
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
        # Small, so that all experts start with about equal weights. Zero would stop the gradients of earlier layers.
        nn.init.normal_(self.logits.weight, std=0.1)

    def forward(self, features: Sequence[Tensor], image_sizes: ImageSizes) -> Tensor:
        """Computes the logits of the experts.

        Args:
            features: (B, C, H, W) of each level.
            image_sizes: height and width of each image in pixels, without padding; a (B, 2) int64 tensor can be traced.

        Returns:
            (B, E, P) float32 logits, also under autocast.
        """
        aggregated: Tensor | None = None
        for feature, stride, downsampling in zip(features, self.strides, self.downsamplings, strict=True):
            aggregated = feature if aggregated is None else torch.cat([aggregated, feature], dim=1)
            aggregated = downsampling(_zero_outside(aggregated, _own_cells(image_sizes, stride)))
        assert aggregated is not None
        with torch.autocast(aggregated.device.type, enabled=False):
            pooled = self._pool(aggregated, _own_cells(image_sizes, 2 * self.strides[-1])).flatten(1)
            standardized = F.layer_norm(pooled, pooled.shape[1:])
            hidden = F.relu(self.hidden(standardized / self.hidden.in_features**0.5))
            logits = self.logits(hidden / self.logits.in_features**0.5)
        return logits.unflatten(1, (self.num_experts, -1))

    def _pool(self, aggregated: Tensor, own_cells: ImageSizes) -> Tensor:
        """Sums (B, C, H, W) over channels and resizes each image's own cells to (B, side, side)."""
        height, width = aggregated.shape[2:]
        summed = aggregated.sum(1, dtype=torch.promote_types(aggregated.dtype, torch.float32))
        rows, columns = _as_tensor(own_cells, summed.device).to(summed.dtype).unbind(1)
        return _resizing(rows, height, self.pool_size) @ summed @ _resizing(columns, width, self.pool_size).mT


def _as_tensor(own_cells: ImageSizes, device: torch.device) -> Tensor:
    return own_cells if isinstance(own_cells, Tensor) else integers_on_device(own_cells, device)


def _own_cells(image_sizes: ImageSizes, stride: int) -> ImageSizes:
    """Returns how many rows and columns of a map with this stride each image covers."""
    if isinstance(image_sizes, Tensor):
        return -(-image_sizes // stride)
    return [(-(-height // stride), -(-width // stride)) for height, width in image_sizes]


def _zero_outside(maps: Tensor, own_cells: ImageSizes) -> Tensor:
    """Sets the cells of (B, C, H, W) maps to zero that the images do not cover."""
    height, width = maps.shape[2:]
    if not isinstance(own_cells, Tensor) and all(rows >= height and columns >= width for rows, columns in own_cells):
        return maps
    rows, columns = _as_tensor(own_cells, maps.device)[:, :, None].unbind(1)
    outside_rows = torch.arange(height, device=maps.device) >= rows
    outside_columns = torch.arange(width, device=maps.device) >= columns
    return maps.masked_fill((outside_rows[:, :, None] | outside_columns[:, None, :])[:, None], 0.0)


def _resizing(own_cells: Tensor, length: int, side: int) -> Tensor:
    """Returns (B, side, length) weights that resize the first ``own_cells``, (B,), of ``length`` cells to ``side``.

    They are those of bilinear ``F.interpolate`` with antialiasing, which needs images of equal size: a triangle around
    each sample, as wide as the distance between samples or between cells, whichever is larger.
    """
    own = own_cells.clamp(max=length)[:, None, None]
    distance = own / side
    middles = (torch.arange(side, device=own.device)[:, None] + 0.5) * distance
    cells = torch.arange(length, device=own.device)
    weights = (1 - (cells + 0.5 - middles).abs() / distance.clamp(min=1)).clamp(min=0) * (cells < own)
    return weights / weights.sum(-1, keepdim=True)
