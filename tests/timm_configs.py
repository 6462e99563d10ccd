"""Models of timm, and configs of detectors with them as backbones."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone

MEAN, STD = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]

# Of each family the smallest, with what it is here for.
NAMES = [
    "resnet18",  # starts at stride 2
    "resnetv2_50",
    "densenet121",
    "darknet17",  # starts at stride 1
    "efficientnet_b0",  # a feature extractor of its own
    "efficientnet_b3",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "regnety_002",
    "convnext_atto",  # starts at stride 4
    "edgenext_xx_small",
    "mobilevit_xxs",
    "hgnetv2_b0",
    "pvt_v2_b0",
    "swin_tiny_patch4_window7_224",  # one input size, channels last
    "swinv2_cr_tiny_ns_224",
    "twins_svt_small",  # features by a method of the model
    "xception41",  # features by hooks
    "test_mambaout",  # channels last
]


def use_timm(cfg: CfgNode, name: str, **keys: object) -> CfgNode:
    """Gives a config a hierarchical backbone of timm, ``MODEL.TIMM`` as in ``keys``, and RGB images."""
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT = MEAN, STD, "RGB"
    cfg.MODEL.TIMM.NAME = name
    for key, value in keys.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def use_vit(cfg: CfgNode, name: str = "test_vit", **keys: object) -> CfgNode:
    """The same with a plain vision transformer; ``WINDOW_SIZE`` and ``GLOBAL_BLOCKS`` go to ``MODEL.VIT``."""
    vit = {key: keys.pop(key) for key in ("WINDOW_SIZE", "GLOBAL_BLOCKS") if key in keys}
    use_timm(cfg, name, **keys).MODEL.BACKBONE.NAME = "build_vit_sfp_backbone"
    for key, value in vit.items():
        cfg.MODEL.VIT[key] = value
    return cfg


def build(cfg: CfgNode) -> Backbone:
    """The backbone of a config, the same at each call."""
    torch.manual_seed(0)
    return build_backbone(cfg)
