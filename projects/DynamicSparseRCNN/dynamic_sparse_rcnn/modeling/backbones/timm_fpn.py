"""Hierarchical timm models behind detectron2's FPN."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from .creation import Arguments, create_timm_model
from .depthwise import train_depthwise_in_float32
from .freezing import KeptInEval, freeze_up_to
from .inputs import build_input_normalization

logger = logging.getLogger(__name__)

# Swin and its like: any input size, windows always whole and shifted. Others have no such arguments.
_ANY_INPUT_SIZE: tuple[Arguments, ...] = (
    {"strict_img_size": False, "always_partition": True},
    {"strict_img_size": False},
    {},
)


class TimmBackbone(Backbone):
    """Feature maps of a timm model by stride: ``res2`` (stride 4) .. ``res5`` (32), whichever it has.

    Of several maps with one stride the deepest is given; those of stride 1 and 2 are not.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        normalization: nn.Module,
        freeze_at: int = 0,
        norm_eval: bool = False,
        norm_frozen: bool = False,
        size_divisibility: int = 0,
    ) -> None:
        """
        Args:
            model: made by ``timm.create_model(..., features_only=True)``.
            normalization: applied to the images first.
            freeze_at: 0: nothing is frozen; 1: what precedes stride 4; n: all up to the map of stride 2**n.
                Frozen parts get no gradients and stay in evaluation mode.
            norm_eval: batch norms keep their statistics.
            norm_frozen: batch norms keep scale and shift; with ``norm_eval`` they are detectron2's FrozenBN.
            size_divisibility: what input height and width must be multiples of; 0: no more than the FPN needs.

        Raises:
            ValueError: ``freeze_at`` is none of the model's.
        """
        super().__init__()
        self.model = model
        self.normalization = normalization
        self._channels_last = _is_channels_last(model)
        self._size_divisibility = size_divisibility
        info: Any = model.feature_info
        self._index = _index_of_maps(info.reduction())
        self._out_features = list(self._index)
        self._out_feature_strides = {name: info.reduction()[i] for name, i in self._index.items()}
        self._out_feature_channels = {name: info.channels()[i] for name, i in self._index.items()}
        frozen = freeze_up_to(model, _last_frozen(model, freeze_at)) if freeze_at else []
        self._in_eval = KeptInEval(model, frozen, norm_eval=norm_eval, norm_frozen=norm_frozen)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        node = cfg.MODEL.TIMM
        indices = {"out_indices": tuple(node.OUT_INDICES)} if node.OUT_INDICES else {}
        model = create_timm_model(cfg, input_shape.channels, _ANY_INPUT_SIZE, features_only=True, **indices)
        check_maps(model, node.NAME, input_shape.channels, node.SIZE_DIVISIBILITY)
        if node.GRAD_CHECKPOINTING:
            _checkpoint_gradients(model, node.NAME)
        train_depthwise_in_float32(model)
        data_config: Any = model.pretrained_cfg
        return {
            "model": model,
            "normalization": build_input_normalization(cfg, data_config["mean"], data_config["std"]),
            "freeze_at": node.FREEZE_AT,
            "norm_eval": node.NORM_EVAL,
            "norm_frozen": node.NORM_FROZEN,
            "size_divisibility": node.SIZE_DIVISIBILITY,
        }

    @property
    def size_divisibility(self) -> int:
        """See the constructor."""
        return self._size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) images to (B, C', H / stride, W / stride) maps."""
        maps = _run(self.model, self.normalization(images), self._channels_last)
        return {name: maps[index] for name, index in self._index.items()}

    def train(self, mode: bool = True) -> TimmBackbone:
        """Sets the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        self._in_eval.apply()
        return self


class TimmFPN(FPN):
    """detectron2's FPN; its inputs are padded to what the model and the FPN both need."""

    @property
    def size_divisibility(self) -> int:
        """Multiple of the largest stride, and of what the model needs."""
        return math.lcm(super().size_divisibility, self.bottom_up.size_divisibility or 1)


def build_fpn(cfg: CfgNode, input_shape: ShapeSpec) -> TimmFPN:
    """See :func:`build_timm_fpn_backbone`."""
    bottom_up = TimmBackbone(cfg, input_shape)
    _check_frozen(bottom_up, cfg.MODEL.TIMM.FREEZE_AT, input_shape.channels)
    _check_levels(cfg, {name: shape.stride for name, shape in bottom_up.output_shape().items()})
    node = cfg.MODEL.FPN
    return TimmFPN(
        bottom_up=bottom_up,
        in_features=node.IN_FEATURES,
        out_channels=node.OUT_CHANNELS,
        norm=node.NORM,
        top_block=LastLevelMaxPool() if node.P6 else None,
        fuse_type=node.FUSE_TYPE,
    )


def _check_levels(cfg: CfgNode, strides: dict[str, int]) -> None:
    """Raises ``ValueError`` if the FPN asks for maps that the model lacks; warns of maps that it leaves unused."""
    node = cfg.MODEL.FPN
    missing = [name for name in node.IN_FEATURES if name not in strides]
    if missing or not node.IN_FEATURES:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES {list(node.IN_FEATURES)} (res2 is stride 4, res5 is stride 32): MODEL.TIMM.NAME "
            f"{cfg.MODEL.TIMM.NAME} gives {strides or 'no map of these strides'}. Leave out what is missing, here and "
            "of MODEL.ROI_HEADS.IN_FEATURES, see MODEL.TIMM.OUT_INDICES, or take another model; for plain vision "
            "transformers (one stride, 16) there is MODEL.BACKBONE.NAME build_vit_sfp_backbone"
        )
    if node.P6 and "res5" not in node.IN_FEATURES:
        raise ValueError(f"MODEL.FPN.P6 is subsampled from p5: add res5 to MODEL.FPN.IN_FEATURES {node.IN_FEATURES}")
    unused = [name for name, stride in strides.items() if stride > max(strides[x] for x in node.IN_FEATURES)]
    if unused:
        logger.warning(
            f"{', '.join(unused)} of MODEL.TIMM.NAME {cfg.MODEL.TIMM.NAME} are computed but not used; "
            "their parameters get no gradients, and distributed training fails: drop them from MODEL.TIMM.OUT_INDICES"
        )


@torch.no_grad()
def check_maps(model: nn.Module, name: str, channels: int, size_divisibility: int = 0) -> None:
    """Runs a model once, on a small image. Some take only one image size, and fail late and obscurely at others.

    Raises:
        ValueError: it fails, or its maps do not have the strides and channels that it states.
    """
    unit = math.lcm(32, size_divisibility or 1)
    height, width = 2 * unit, 3 * unit
    was_training = model.training
    try:
        maps = _run(model.eval(), torch.zeros(1, channels, height, width), _is_channels_last(model))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"MODEL.TIMM.NAME {name} does not take images of any size (tried {height}x{width}: {error}): give the "
            "multiple it needs as MODEL.TIMM.SIZE_DIVISIBILITY, or take another model; for plain vision transformers "
            "there is MODEL.BACKBONE.NAME build_vit_sfp_backbone"
        ) from error
    finally:
        model.train(was_training)
    info: Any = model.feature_info
    stated = [(c, height // s, width // s) for c, s in zip(info.channels(), info.reduction(), strict=True)]
    found = [tuple(x.shape[1:]) for x in maps]
    if stated != found:
        raise ValueError(
            f"MODEL.TIMM.NAME {name} states maps {stated}, but gives {found}: try a larger "
            "MODEL.TIMM.SIZE_DIVISIBILITY (64), or take another model"
        )


def _run(model: Any, images: Tensor, channels_last: bool) -> list[Tensor]:
    maps = model(images)
    return [x.permute(0, 3, 1, 2).contiguous() for x in maps] if channels_last else maps


def _is_channels_last(model: Any) -> bool:
    return getattr(getattr(model, "output_fmt", None), "value", "NCHW") == "NHWC"


def _index_of_maps(strides: list[int]) -> dict[str, int]:
    return {f"res{int(math.log2(s))}": i for i, s in enumerate(strides) if s >= 4 and math.log2(s).is_integer()}


def _last_frozen(model: Any, freeze_at: int) -> str:
    """The name of the last module that ``freeze_at`` freezes."""
    # All maps of the model, not only those that it gives.
    modules = {entry["reduction"]: entry["module"] for entry in model.feature_info.info}
    names = [name for name, _ in model.named_modules()]
    stride = 2**freeze_at
    only_stem = freeze_at == 1 and stride not in modules
    wanted = modules[min(modules)] if only_stem else modules.get(stride)
    found = [index for index, name in enumerate(names) if wanted and _same_module(name, wanted)]
    if not found:
        raise ValueError(
            f"MODEL.TIMM.FREEZE_AT {freeze_at} freezes up to stride {stride}, for which the model has no module of its "
            f"own (it has maps of strides {sorted(modules)}): use 0 or another"
        )
    return names[found[0] - 1] if only_stem else names[found[0]]


def _check_frozen(bottom_up: TimmBackbone, freeze_at: int, channels: int) -> None:
    """Raises ``ValueError`` if a map that should be frozen learns: not all models run in the order of their parts."""
    name = f"res{freeze_at}"
    if name not in bottom_up.output_shape():
        return
    unit = 2 * math.lcm(32, bottom_up.size_divisibility or 1)
    was_training = bottom_up.training
    learns = bottom_up.eval()(torch.zeros(1, channels, unit, unit))[name].requires_grad
    bottom_up.train(was_training)
    if learns:
        raise ValueError(
            f"MODEL.TIMM.FREEZE_AT {freeze_at}: this model cannot be frozen up to stride {2**freeze_at}, its parts do "
            "not follow each other: use 0"
        )


def _same_module(name: str, wanted: str) -> bool:
    # As feature extractors rename them: stages_0 for stages.0, with the model within model or body.
    return name.removeprefix("model.").removeprefix("body.").replace(".", "_") == wanted.replace(".", "_")


def _checkpoint_gradients(model: Any, name: str) -> None:
    inner: Any = model if hasattr(model, "set_grad_checkpointing") else getattr(model, "model", None)
    try:
        inner.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise ValueError(
            f"MODEL.TIMM.NAME {name} has no gradient checkpointing: set MODEL.TIMM.GRAD_CHECKPOINTING False"
        ) from error
