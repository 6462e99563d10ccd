"""Converts the detector's input normalization to the one that a pretrained model expects."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# In units of 0..255; rounded constants differ by less.
_TOLERANCE = 0.05


class InputNormalization(nn.Module):
    """Re-normalizes images to another mean, std and channel order."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        given_mean: Sequence[float],
        given_std: Sequence[float],
        wanted_mean: Sequence[float],
        wanted_std: Sequence[float],
        reverse_channels: bool,
    ) -> None:
        """
        Args:
            given_mean: of the input, per channel in its order, in units of 0..255.
            given_std: likewise.
            wanted_mean: of the output, per channel in its order, in units of 0..255.
            wanted_std: likewise.
            reverse_channels: whether to reverse the channels (BGR to RGB).
        """
        super().__init__()
        self.reverse_channels = reverse_channels
        step = -1 if reverse_channels else 1
        mean, std = (torch.tensor(list(x)[::step]).view(-1, 1, 1) for x in (given_mean, given_std))
        new_mean, new_std = (torch.tensor(list(x)).view(-1, 1, 1) for x in (wanted_mean, wanted_std))
        self.register_buffer("scale", std / new_std, persistent=False)
        self.register_buffer("shift", (mean - new_mean) / new_std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in, the same out."""
        if self.reverse_channels:
            images = images.flip(1)
        return images * self.scale + self.shift


def build_input_normalization(cfg: CfgNode, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The module between the detector's normalization and the model.

    With ``MODEL.TIMM.NORMALIZATION model`` the model gets RGB images normalized as its data config says,
    whatever ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD`` and ``INPUT.FORMAT`` are; with ``config`` it gets the
    images as they are, and a warning names the difference.

    Args:
        cfg: the whole config.
        mean: of the model's data config, RGB, in units of 0..1.
        std: likewise.

    Raises:
        ValueError: another ``MODEL.TIMM.NORMALIZATION``.
    """
    choice = cfg.MODEL.TIMM.NORMALIZATION
    if choice not in ("model", "config"):
        raise ValueError(f"MODEL.TIMM.NORMALIZATION is {choice!r}: use model or config")
    given = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    wanted = [255 * x for x in mean], [255 * x for x in std]
    image_format = cfg.INPUT.FORMAT
    reverse = image_format == "BGR"
    if len(given[0]) != len(wanted[0]) or image_format not in ("RGB", "BGR"):
        logger.warning(
            f"INPUT.FORMAT {image_format} of {len(given[0])} channels is not the RGB of MODEL.TIMM.NAME "
            f"{cfg.MODEL.TIMM.NAME}: its data config is ignored, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD are used"
        )
        return nn.Identity()
    ordered = [x[::-1] if reverse else x for x in given]
    if not reverse and np.allclose(ordered, wanted, rtol=0, atol=_TOLERANCE):
        return nn.Identity()
    if choice == "config":
        _warn(cfg, wanted)
        return nn.Identity()
    return InputNormalization(*given, *wanted, reverse_channels=reverse)


def _warn(cfg: CfgNode, wanted: tuple[list[float], list[float]]) -> None:
    mean, std = ([round(x, 3) for x in values] for values in wanted)
    logger.warning(
        f"MODEL.TIMM.NAME {cfg.MODEL.TIMM.NAME} was trained on RGB with mean {mean} and std {std}; "
        f"INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)} and MODEL.PIXEL_STD "
        f"{list(cfg.MODEL.PIXEL_STD)} differ, and with MODEL.TIMM.NORMALIZATION config images are not converted"
    )
