"""Plain vision transformers behind the simple feature pyramid of ViTDet (arXiv 2203.16527)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_sam import window_partition, window_unpartition
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .creation import Arguments, create_timm_model
from .freezing import KeptInEval, freeze_up_to
from .inputs import build_input_normalization

logger = logging.getLogger(__name__)

_STRIDE = 16


class ViTBackbone(Backbone):
    """The map of a plain vision transformer, of stride 16, after its last block and without its final norm.

    Positional embeddings are interpolated to the size of each input. Class and register tokens take part as in
    pretraining. If blocks attend in windows, which have no place for them, they are dropped.
    """

    @configurable
    def __init__(
        self,
        *,
        vit: VisionTransformer,
        normalization: nn.Module,
        window_size: int = 0,
        global_blocks: Sequence[int] = (),
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            vit: pruned to the blocks in use, with dynamic image size.
            normalization: applied to the images first.
            window_size: side in patches of the windows that blocks attend within; 0: all attend globally.
            global_blocks: indices of the blocks that attend globally all the same.
            freeze_at: 0: nothing is frozen; 1: the embeddings; n: the first n - 1 blocks too.

        Raises:
            ValueError: a number is out of range, or the model is of a kind without windows.
        """
        super().__init__()
        self.vit = vit
        self.normalization = normalization
        depth = len(vit.blocks)
        if not 0 <= freeze_at <= depth + 1 or not all(0 <= index < depth for index in global_blocks):
            raise ValueError(
                f"MODEL.TIMM.FREEZE_AT {freeze_at} and MODEL.VIT.GLOBAL_BLOCKS {list(global_blocks)} must lie "
                f"within the {depth} blocks of the model"
            )
        if window_size < 0:
            raise ValueError(f"MODEL.VIT.WINDOW_SIZE is {window_size}: use 0, or the side of windows in patches")
        if window_size:
            _drop_prefix_tokens(vit)
            for index in set(range(depth)) - set(global_blocks):
                vit.blocks[index] = WindowedBlock(vit.blocks[index], window_size)
        frozen = _freeze(vit, freeze_at) if freeze_at else []
        self._in_eval = KeptInEval(vit, frozen)
        self._out_features = ["last"]
        self._out_feature_channels = {"last": vit.embed_dim}
        self._out_feature_strides = {"last": _STRIDE}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        node = cfg.MODEL.TIMM
        any_size: tuple[Arguments, ...] = ({"dynamic_img_size": True}, {})
        vit: Any = create_timm_model(cfg, input_shape.channels, any_size, num_classes=0)
        _check_plain(vit, node.NAME)
        if len(node.OUT_INDICES) > 1:
            raise ValueError(f"MODEL.TIMM.OUT_INDICES {list(node.OUT_INDICES)}: the pyramid is built from one block")
        try:
            vit.prune_intermediate_layers(list(node.OUT_INDICES) or 1, prune_norm=True)
        except AssertionError as error:
            raise ValueError(f"MODEL.TIMM.OUT_INDICES: {error}") from error
        vit.set_grad_checkpointing(node.GRAD_CHECKPOINTING)
        data_config = vit.pretrained_cfg
        return {
            "vit": vit,
            "normalization": build_input_normalization(cfg, data_config["mean"], data_config["std"]),
            "window_size": cfg.MODEL.VIT.WINDOW_SIZE,
            "global_blocks": cfg.MODEL.VIT.GLOBAL_BLOCKS,
            "freeze_at": node.FREEZE_AT,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) images, their sides multiples of 16, to one (B, C', H / 16, W / 16) map, ``last``."""
        vit = self.vit
        grid = images.shape[-2] // _STRIDE, images.shape[-1] // _STRIDE
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(self.normalization(images)))))
        for block in vit.blocks:
            # Passed along, as state of the block it would be the last image's when a checkpoint is recomputed.
            arguments = (tokens, grid) if isinstance(block, WindowedBlock) else (tokens,)
            if vit.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, *arguments, use_reentrant=False)
            else:
                tokens = block(*arguments)
        return {"last": tokens[:, vit.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid).contiguous()}

    def train(self, mode: bool = True) -> ViTBackbone:
        """Sets the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        self._in_eval.apply()
        return self

    def layer_of(self, name: str) -> int:
        """The layer that a parameter belongs to: 0 the embeddings, n the n-th block."""
        parts = name.split(".")
        return int(parts[2]) + 1 if parts[:2] == ["vit", "blocks"] else 0


class WindowedBlock(nn.Module):
    """A block of timm's that attends within windows, with its parameters under their own names.

    As in ViTDet, windows at the right and lower border are filled up with zeros, which are attended to.
    """

    norm1: nn.Module
    attn: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: nn.Module, window_size: int) -> None:
        """
        Args:
            block: whose parts are taken over.
            window_size: side of a window in patches.
        """
        super().__init__()
        if type(block) is not Block:
            raise ValueError(f"MODEL.VIT.WINDOW_SIZE {window_size}: {type(block).__name__} has no windows: set it to 0")
        self.window_size = window_size
        for name, part in block.named_children():
            self.add_module(name, part)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, H * W, C) tokens in, the same out.

        Args:
            tokens: of the patches, row by row, without class or register tokens.
            grid: rows and columns (H, W) of patches.
        """
        windows, padded = window_partition(self.norm1(tokens).unflatten(1, grid), self.window_size)
        attended = self.attn(windows.flatten(1, 2)).view_as(windows)
        joined = window_unpartition(attended, self.window_size, grid, padded).flatten(1, 2)
        tokens = tokens + self.drop_path1(self.ls1(joined))
        return tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))


class SimpleFeaturePyramid(Backbone):
    """Maps p2..p5 (p6) of strides 4..32 (64), each from the one map of stride 16, with layer norms as published."""

    def __init__(self, bottom_up: ViTBackbone, out_channels: int, with_p6: bool = False) -> None:
        """
        Args:
            bottom_up: gives the map of stride 16.
            out_channels: of each map of the pyramid.
            with_p6: whether there is a p6, p5 subsampled by two.
        """
        super().__init__()
        self.bottom_up = bottom_up
        channels = bottom_up.output_shape()["last"].channels
        self.levels = nn.ModuleDict(
            {
                "p2": nn.Sequential(
                    nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
                    LayerNorm2d(channels // 2),
                    nn.GELU(),
                    nn.ConvTranspose2d(channels // 2, channels // 4, 2, stride=2),
                    *_to_output(channels // 4, out_channels),
                ),
                "p3": nn.Sequential(
                    nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
                    *_to_output(channels // 2, out_channels),
                ),
                "p4": nn.Sequential(*_to_output(channels, out_channels)),
                "p5": nn.Sequential(nn.MaxPool2d(2), *_to_output(channels, out_channels)),
            }
        )
        self.with_p6 = with_p6
        self._out_features = [*self.levels, *(["p6"] if with_p6 else [])]
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._out_feature_strides = {name: 2 ** int(name[1:]) for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        """The stride of p5."""
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) images, their sides multiples of 32, to the maps of the pyramid."""
        features = self.bottom_up(images)["last"]
        maps = {name: level(features) for name, level in self.levels.items()}
        if self.with_p6:
            maps["p6"] = F.max_pool2d(maps["p5"], kernel_size=1, stride=2)
        return maps

    def layer_decay_scales(self, decay: float) -> dict[str, float]:
        """What the learning rate of each parameter is multiplied by under layer-wise decay, as in MAE and BEiT.

        ``decay`` to the power of the layers above it: the pyramid has 1, the last block ``decay``, the
        embeddings ``decay ** (blocks + 1)``.
        """
        above = len(self.bottom_up.vit.blocks) + 1
        prefix = "bottom_up."
        return {
            name: decay ** (above - self.bottom_up.layer_of(name.removeprefix(prefix)))
            if name.startswith(prefix)
            else 1.0
            for name, _ in self.named_parameters()
        }


def build_simple_feature_pyramid(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """See :func:`build_vit_sfp_backbone`."""
    return SimpleFeaturePyramid(ViTBackbone(cfg, input_shape), cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.P6)


def _check_plain(vit: nn.Module, name: str) -> None:
    if not isinstance(vit, VisionTransformer) or tuple(vit.patch_embed.patch_size) != (_STRIDE, _STRIDE):
        raise ValueError(
            f"MODEL.TIMM.NAME {name} is not one of timm's VisionTransformer with patches of 16 pixels: take a "
            "vit_*_patch16_*, or MODEL.BACKBONE.NAME build_timm_fpn_backbone for a hierarchical model"
        )


def _drop_prefix_tokens(vit: VisionTransformer) -> None:
    if not vit.num_prefix_tokens:
        return
    if type(vit) is not VisionTransformer:
        raise ValueError(
            f"MODEL.VIT.WINDOW_SIZE: timm's {type(vit).__name__} cannot do without its class and distillation tokens: "
            "set it to 0, or take another MODEL.TIMM.NAME"
        )
    logger.info(f"{vit.num_prefix_tokens} class and register tokens are dropped: windows have no place for them")
    if vit.pos_embed is not None and not vit.no_embed_class:
        vit.pos_embed = nn.Parameter(vit.pos_embed.detach()[:, vit.num_prefix_tokens :].clone())
    vit.cls_token = vit.reg_token = None
    vit.num_prefix_tokens = 0


def _freeze(vit: VisionTransformer, freeze_at: int) -> list[str]:
    if freeze_at > 1:
        return freeze_up_to(vit, f"blocks.{freeze_at - 2}")
    names = [name for name, _ in vit.named_modules()]
    return freeze_up_to(vit, names[names.index("blocks") - 1])


def _to_output(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    ]
