"""Plain vision transformers: features as timm's own, windows, positions, MAE's files, layer-wise decay."""

from __future__ import annotations

import argparse
import logging

import pytest
import timm
import torch
from detectron2.modeling import build_model
from timm.models.vision_transformer import Block, VisionTransformer
from timm_configs import build, use_vit

from dynamic_sparse_rcnn.engine.solver import build_optimizer
from dynamic_sparse_rcnn.modeling.backbones.vit import WindowedBlock

DEPTH = 6  # of test_vit, whose own size is 160


def make_vit(**arguments: object) -> VisionTransformer:
    """timm's model with random values where it would start from zeros."""
    model = timm.create_model("test_vit", **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def features_of(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    (features,) = model.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)
    return features


def save_as_mae(model: VisionTransformer, path) -> str:
    """As MAE's fine-tuning writes it; the decoder and the mask token are those of its pre-training."""
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    extra = {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    torch.save({"model": weights | extra, "args": argparse.Namespace(lr=1.0), "epoch": 3}, path)
    return str(path)


def test_the_pyramid_has_four_levels_and_every_parameter_learns(tiny_cfg):
    backbone = build(use_vit(tiny_cfg)).train()
    outputs = backbone(torch.randn(2, 3, 64, 96))
    assert {k: tuple(x.shape) for k, x in outputs.items()} == {
        "p2": (2, 32, 16, 24), "p3": (2, 32, 8, 12), "p4": (2, 32, 4, 6), "p5": (2, 32, 2, 3)
    }  # fmt: skip
    assert {k: (s.stride, s.channels) for k, s in backbone.output_shape().items()} == {
        "p2": (4, 32), "p3": (8, 32), "p4": (16, 32), "p5": (32, 32)
    }  # fmt: skip
    assert backbone.size_divisibility == 32
    sum((x * torch.randn_like(x)).sum() for x in outputs.values()).backward()
    gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []


def test_p6_is_p5_subsampled(tiny_cfg):
    tiny_cfg.MODEL.FPN.P6 = True
    backbone = build(use_vit(tiny_cfg))
    outputs = backbone(torch.randn(1, 3, 64, 128))
    assert torch.equal(outputs["p6"], outputs["p5"][:, :, ::2, ::2])
    assert backbone.output_shape()["p6"].stride == 64


def test_a_file_of_mae_gives_timms_features_at_its_own_size_and_sane_ones_at_others(tiny_cfg, tmp_path, caplog):
    model = make_vit()
    path = save_as_mae(model, tmp_path / "mae.pth")
    with caplog.at_level(logging.INFO):
        backbone = build(use_vit(tiny_cfg, CHECKPOINT=path)).bottom_up.eval()
    images = torch.randn(2, 3, 160, 160)
    normalized = backbone.normalization(images)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)["last"], features_of(model, normalized), rtol=1e-5, atol=1e-5)
        # Twice the size: what timm's own dynamic size gives.
        large = torch.nn.functional.interpolate(images, size=(320, 256), mode="bilinear")
        dynamic = make_vit(dynamic_img_size=True)
        dynamic.load_state_dict(model.state_dict())
        features = backbone(large)["last"]
    assert features.shape == (2, 64, 20, 16)
    torch.testing.assert_close(features, features_of(dynamic, backbone.normalization(large)), rtol=1e-5, atol=1e-5)
    # Enlarged images have about the same features.
    small = torch.nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)
    own = torch.nn.functional.adaptive_avg_pool2d(features_of(model, normalized), 1).flatten(1)
    assert torch.cosine_similarity(small, own).min() > 0.8
    assert "Unexpected keys (decoder_blocks.0.norm1.weight)" in caplog.text
    assert "Missing keys" not in caplog.text


def test_what_a_file_lacks_is_named_too(tiny_cfg, tmp_path, caplog):
    weights = make_vit().state_dict()
    del weights["blocks.2.attn.qkv.bias"]
    torch.save({"model": weights}, tmp_path / "mae.pth")
    with caplog.at_level(logging.INFO):
        build(use_vit(tiny_cfg, CHECKPOINT=str(tmp_path / "mae.pth")))
    assert "Missing keys (blocks.2.attn.qkv.bias)" in caplog.text


def test_positions_of_another_grid_are_interpolated(tiny_cfg, tmp_path, caplog):
    larger = make_vit(img_size=320)
    path = save_as_mae(larger, tmp_path / "mae.pth")
    with caplog.at_level(logging.INFO):
        backbone = build(use_vit(tiny_cfg, CHECKPOINT=path))
    positions = backbone.bottom_up.vit.pos_embed
    assert positions.shape == (1, 101, 64)
    assert torch.equal(positions[:, 0], larger.pos_embed[:, 0])
    assert "Resized position embedding: (20, 20) to (10, 10)" in caplog.text


@pytest.mark.parametrize("tokens", [100, 21])
def test_positions_of_no_square_grid_behind_a_class_token_are_refused(tiny_cfg, tmp_path, tokens):
    weights = make_vit().state_dict() | {"pos_embed": torch.zeros(1, tokens, 64)}
    torch.save({"model": weights}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=r"mae.pth does not fit MODEL.TIMM.NAME test_vit: "):
        build(use_vit(tiny_cfg, CHECKPOINT=str(tmp_path / "mae.pth")))


def test_timms_names_with_mae_are_taken_and_the_pyramid_may_be_built_on_an_earlier_block(tiny_cfg):
    backbone = build(use_vit(tiny_cfg, "vit_base_patch16_224.mae", OUT_INDICES=[0]))
    assert backbone(torch.randn(1, 3, 32, 32))["p5"].shape == (1, 32, 1, 1)
    assert len(backbone.bottom_up.vit.blocks) == 1


def slow_window_attention(block: Block, tokens: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Each window by itself, filled up with zeros."""
    normed = block.norm1(tokens).unflatten(1, grid)
    attended = torch.zeros_like(normed)
    for top in range(0, grid[0], side):
        for left in range(0, grid[1], side):
            part = normed[:, top : top + side, left : left + side]
            window = normed.new_zeros(len(tokens), side, side, tokens.shape[2])
            window[:, : part.shape[1], : part.shape[2]] = part
            result = block.attn(window.flatten(1, 2)).unflatten(1, (side, side))
            attended[:, top : top + side, left : left + side] = result[:, : part.shape[1], : part.shape[2]]
    tokens = tokens + attended.flatten(1, 2)
    return tokens + block.mlp(block.norm2(tokens))


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (2, 9)])
def test_windows_are_those_of_a_loop_over_them(grid):
    block = make_vit().blocks[0]
    tokens = torch.randn(2, grid[0] * grid[1], 64)
    windowed = WindowedBlock(block, 3)
    expected = slow_window_attention(block, tokens, grid, 3)
    torch.testing.assert_close(windowed(tokens, grid), expected, rtol=1e-5, atol=1e-5)
    assert list(windowed.state_dict()) == list(block.state_dict())


def test_windows_over_the_whole_image_are_global_attention_without_class_token(tiny_cfg, tmp_path):
    model = make_vit(class_token=False, global_pool="avg", dynamic_img_size=True)
    weights = model.state_dict()
    weights["pos_embed"] = torch.cat([torch.randn(1, 1, 64), weights["pos_embed"]], dim=1)
    weights["cls_token"] = torch.randn(1, 1, 64)
    torch.save({"model": weights}, tmp_path / "mae.pth")
    backbone = build(use_vit(tiny_cfg, CHECKPOINT=str(tmp_path / "mae.pth"), WINDOW_SIZE=8)).bottom_up.eval()
    images = torch.randn(1, 3, 128, 128)
    expected = features_of(model, backbone.normalization(images))
    torch.testing.assert_close(backbone(images)["last"], expected, rtol=1e-5, atol=1e-5)


def test_what_happens_in_a_window_stays_there_unless_a_block_is_global(tiny_cfg):
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[..., :32, :32] += 1
    for global_blocks, stays in (((), True), ((2,), False)):
        backbone = build(use_vit(tiny_cfg, WINDOW_SIZE=2, GLOBAL_BLOCKS=global_blocks)).bottom_up.eval()
        difference = (backbone(images)["last"] - backbone(changed)["last"]).abs()[..., 2:, 2:].max()
        assert (difference == 0) == stays


def test_two_image_sizes_before_one_backward_keep_their_gradients_with_checkpointing(tiny_cfg):
    images = [torch.randn(1, 3, 64, 96), torch.randn(1, 3, 96, 64)]  # as many patches, in another grid
    gradients = []
    for checkpointing in (False, True):
        backbone = build(use_vit(tiny_cfg, WINDOW_SIZE=3, GRAD_CHECKPOINTING=checkpointing)).train()
        # Not the mean of squares, which the last norm fixes.
        sum(x.pow(3).mean() for size in images for x in backbone(size).values()).backward()
        gradients.append({name: parameter.grad for name, parameter in backbone.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_names_stay_the_same_with_windows_and_checkpointing(tiny_cfg):
    plain = build(use_vit(tiny_cfg)).state_dict()
    backbone = build(use_vit(tiny_cfg, WINDOW_SIZE=3, GLOBAL_BLOCKS=[5], GRAD_CHECKPOINTING=True, DROP_PATH=0.1))
    assert set(plain) - set(backbone.state_dict()) == {"bottom_up.vit.cls_token"}
    assert set(backbone.state_dict()) <= set(plain)
    assert {"bottom_up.vit.blocks.5.attn.qkv.weight", "levels.p2.0.weight"} <= set(plain)


def test_checkpointing_and_mixed_precision_leave_windows_alone(tiny_cfg):
    gradients = []
    images = torch.randn(1, 3, 64, 96)
    for checkpointing in (False, True):
        backbone = build(use_vit(tiny_cfg, WINDOW_SIZE=3, GRAD_CHECKPOINTING=checkpointing)).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sum(x.float().pow(3).mean() for x in backbone(images).values()).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients[-1])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("freeze_at", "blocks"), [(1, 0), (3, 2), (DEPTH + 1, DEPTH)])
def test_freezing_takes_the_embeddings_and_the_blocks_before(tiny_cfg, freeze_at, blocks):
    backbone = build(use_vit(tiny_cfg, FREEZE_AT=freeze_at, DROP_PATH=0.5)).train()
    frozen = tuple(f"bottom_up.vit.{x}" for x in ("cls_token", "pos_embed", "patch_embed"))
    frozen += tuple(f"bottom_up.vit.blocks.{index}." for index in range(blocks))
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    training = [block.training for block in backbone.bottom_up.vit.blocks]
    assert training == [False] * blocks + [True] * (DEPTH - blocks)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("resnet18", {}, "build_timm_fpn_backbone for a hierarchical model"),
        ("vit_tiny_patch8_224", {}, "vit_.*_patch16"),
        ("test_vit", {"FREEZE_AT": 8}, "FREEZE_AT 8"),
        ("test_vit", {"GLOBAL_BLOCKS": [6], "WINDOW_SIZE": 2}, r"GLOBAL_BLOCKS \[6\]"),
        ("test_vit", {"WINDOW_SIZE": -2}, "WINDOW_SIZE is -2: use 0"),
        ("deit_tiny_distilled_patch16_224", {"WINDOW_SIZE": 2}, "WINDOW_SIZE.*cannot do without.*set it to 0"),
        ("test_vit", {"OUT_INDICES": [2, 5]}, "one block"),
        ("test_vit", {"OUT_INDICES": [9]}, "OUT_INDICES"),
    ],
)
def test_what_cannot_be_built_is_refused_by_the_key_to_change(tiny_cfg, name, keys, message):
    with pytest.raises(ValueError, match=message):
        build(use_vit(tiny_cfg, name, **keys))


def test_blocks_of_a_kind_without_windows_are_refused():
    with pytest.raises(ValueError, match=r"WINDOW_SIZE 2: Identity has no windows"):
        WindowedBlock(torch.nn.Identity(), 2)


def test_layer_decay_lowers_the_rate_of_each_block_by_the_layers_above_it(tiny_cfg):
    cfg = use_vit(tiny_cfg)
    cfg.SOLVER.LAYER_DECAY, cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5, 1.0, 3.0
    model = build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    expected = {f"backbone.bottom_up.vit.blocks.{index}.": 3 * 0.5 ** (DEPTH - index) for index in range(DEPTH)}
    expected |= {f"backbone.bottom_up.vit.{x}": 3 * 0.5 ** (DEPTH + 1) for x in ("pos", "cls", "patch")}
    expected |= {"backbone.levels.": 3.0, "head.": 1.0, "proposal_generator.": 1.0}
    for name, parameter in model.named_parameters():
        (rate,) = [rate for prefix, rate in expected.items() if name.startswith(prefix)]
        assert rates[id(parameter)] == pytest.approx(rate), name
