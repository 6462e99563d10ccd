"""With the same weights, detectron2's own ViTDet and ours give the same pyramid."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm_configs import build, use_vit

vit = pytest.importorskip("detectron2.modeling.backbone.vit", reason="detectron2 0.6 has no ViTDet")
SIZE, DEPTH, CHANNELS = 160, 6, 64


def test_windows_and_pyramid_are_those_of_detectron2s_vitdet(tiny_cfg):
    ours = build(use_vit(tiny_cfg, WINDOW_SIZE=3, GLOBAL_BLOCKS=[2, 5])).eval()
    theirs = vit.SimpleFeaturePyramid(
        vit.ViT(
            img_size=SIZE,
            embed_dim=CHANNELS,
            depth=DEPTH,
            num_heads=ours.bottom_up.vit.blocks[0].attn.num_heads,
            mlp_ratio=ours.bottom_up.vit.blocks[0].mlp.fc1.out_features / CHANNELS,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            window_size=3,
            window_block_indexes=[0, 1, 3, 4],
            pretrain_img_size=SIZE,
        ),
        in_feature="last_feat",
        out_channels=32,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        norm="LN",
        square_pad=0,
    ).eval()
    weights = {name.removeprefix("bottom_up.vit."): value for name, value in ours.state_dict().items()}
    class_position = torch.randn(1, 1, CHANNELS)
    weights["pos_embed"] = torch.cat([class_position, weights["pos_embed"]], dim=1)
    backbone = {name: weights[name] for name in theirs.net.state_dict()}
    theirs.net.load_state_dict(backbone)
    with torch.no_grad():
        levels = [parameter for name, parameter in theirs.named_parameters() if name.startswith("simfp")]
        for parameter, value in zip(levels, ours.levels.parameters(), strict=True):
            value.add_(0.1 * torch.randn_like(value))
            parameter.copy_(value)
        images = torch.randn(2, 3, SIZE, SIZE)
        expected = theirs(ours.bottom_up.normalization(images))
        outputs = ours(images)
    assert set(outputs) == set(expected)
    for name, x in outputs.items():
        torch.testing.assert_close(x, expected[name], rtol=1e-4, atol=1e-4)


def test_layer_decay_is_that_of_detectron2s_vitdet(tiny_cfg):
    scales = build(use_vit(tiny_cfg, WINDOW_SIZE=3)).layer_decay_scales(0.7)
    assert len(set(scales.values())) == DEPTH + 2
    for name, scale in scales.items():
        assert scale == pytest.approx(vit.get_vit_lr_decay_rate(f"backbone.{name}", 0.7, DEPTH)), name
