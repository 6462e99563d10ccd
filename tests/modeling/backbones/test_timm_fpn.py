"""Hierarchical models of timm behind the FPN: shapes, normalization, and the ResNet of detectron2."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from detectron2.modeling import build_backbone, build_model
from timm_configs import MEAN, NAMES, STD, build, use_timm

from dynamic_sparse_rcnn.modeling.backbones.inputs import InputNormalization
from dynamic_sparse_rcnn.modeling.backbones.timm_fpn import check_maps

SIZE = (64, 96)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_gives_the_pyramid_and_finite_gradients_also_in_mixed_precision(tiny_cfg, name):
    backbone = build(use_timm(tiny_cfg, name))
    check_mixed_precision(backbone)
    backbone.train().zero_grad()
    outputs = backbone(torch.randn(2, 3, *SIZE))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        f"p{level}": (2, 32, SIZE[0] // 2**level, SIZE[1] // 2**level) for level in (2, 3, 4, 5)
    }
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {
        "p2": 4, "p3": 8, "p4": 16, "p5": 32
    }  # fmt: skip
    sum(x.square().mean() for x in outputs.values()).backward()
    gradients = [parameter.grad for parameter in backbone.parameters()]
    # Distributed training waits for parameters without any.
    assert all(gradient is not None for gradient in gradients)
    assert torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
    assert gradients[0].abs().max() > 0


def check_mixed_precision(backbone: torch.nn.Module) -> None:
    """Nearly the same maps, and finite gradients."""
    backbone.eval()
    images = torch.randn(1, 3, *SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = backbone(images)
        sum(x.float().square().mean() for x in outputs.values()).backward()
    gradients = [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    for exact, rounded in zip(backbone(images).values(), outputs.values(), strict=True):
        assert (exact - rounded.float()).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("densenet121", "twins_svt_small")])
def test_state_dict_names_depend_on_the_model_alone(tiny_cfg, name):
    # Those left out refuse one of these options.
    plain = build(use_timm(tiny_cfg, name)).state_dict()
    options = {"FREEZE_AT": 2, "NORM_EVAL": True, "DROP_PATH": 0.1, "GRAD_CHECKPOINTING": True}
    other = build(use_timm(tiny_cfg, name, **options)).train()
    other.load_state_dict(plain)
    assert list(other.state_dict()) == list(plain)


def test_state_dict_names_are_those_of_checkpoints_already_written(tiny_cfg):
    names = build(use_timm(tiny_cfg, "resnet18")).state_dict().keys()
    assert {"bottom_up.model.conv1.weight", "bottom_up.model.layer4.1.bn2.running_var", "fpn_lateral2.weight"} <= names
    names = build(use_timm(tiny_cfg, "convnext_atto")).state_dict().keys()
    assert {"bottom_up.model.stem_0.weight", "bottom_up.model.stages_3.blocks.1.mlp.fc2.bias"} <= names


def test_gradient_checkpointing_gives_the_same_gradients(tiny_cfg):
    images, gradients = torch.randn(1, 3, *SIZE), []
    for checkpointing in (False, True):
        for name in ("resnet18", "swin_tiny_patch4_window7_224"):
            backbone = build(use_timm(tiny_cfg, name, GRAD_CHECKPOINTING=checkpointing, NORM_EVAL=True)).train()
            sum(x.mean() for x in backbone(images).values()).backward()
            gradients.append([parameter.grad for parameter in backbone.parameters()])
    torch.testing.assert_close(gradients[:2], gradients[2:])


def test_a_model_of_one_input_size_takes_any_and_is_itself_at_its_own(tiny_cfg):
    backbone = build(use_timm(tiny_cfg, "swin_tiny_patch4_window7_224")).bottom_up.eval()
    own = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, always_partition=True).eval()
    own.load_state_dict(backbone.model.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for ours, theirs in zip(backbone(images).values(), own(images), strict=True):
            torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2))
        assert backbone(torch.randn(1, 3, 96, 160))["res5"].shape == (1, 768, 3, 5)


def convert_resnet(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the parameters of timm's ResNets to detectron2's."""
    result = {}
    for name, value in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}.", f"res{stage + 1}.")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for number in (1, 2, 3):
            name = name.replace(f"bn{number}", f"conv{number}.norm")
        result[name if name.startswith("res") else f"stem.{name}"] = value
    return result


@pytest.mark.parametrize("training", [False, True])
def test_resnet50_of_timm_and_of_detectron2_are_the_same(tiny_cfg, training):
    options = {"FREEZE_AT": 2, "NORM_EVAL": True, "NORM_FROZEN": True}
    ours = build(use_timm(tiny_cfg, "resnet50", **options)).train(training)
    for name, value in ours.named_buffers():  # as after a training
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    tiny_cfg.MODEL.BACKBONE.NAME, tiny_cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 2
    tiny_cfg.MODEL.RESNETS.DEPTH, tiny_cfg.MODEL.RESNETS.NORM = 50, "FrozenBN"
    tiny_cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
    tiny_cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64
    tiny_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, tiny_cfg.MODEL.RESNETS.STRIDE_IN_1X1 = 256, False
    theirs = build_backbone(tiny_cfg).train(training)
    pyramid = {k: v for k, v in ours.state_dict().items() if k.startswith("fpn")}
    weights = convert_resnet(ours.bottom_up.model.state_dict())
    theirs.load_state_dict(pyramid | {f"bottom_up.{name}": value for name, value in weights.items()})
    images = torch.randn(2, 3, 96, 64)
    expected = theirs(images)
    for name, x in ours(images).items():
        torch.testing.assert_close(x, expected[name], rtol=1e-4, atol=1e-4)
    # They learn the same, too.
    learning = [sum(p.numel() for p in x.parameters() if p.requires_grad) for x in (ours, theirs)]
    assert learning[0] == learning[1]


def test_images_are_normalized_as_the_model_expects(tiny_cfg):
    # test_resnet has mean and std 0.5.
    raw = torch.randint(0, 256, (2, 3, *SIZE)).float()
    model = timm.create_model("test_resnet", features_only=True).eval()
    expected = model((raw / 255 - 0.5) / 0.5)
    for image_format, step in (("RGB", 1), ("BGR", -1)):
        use_timm(tiny_cfg, "test_resnet").INPUT.FORMAT = image_format
        backbone = build(tiny_cfg).bottom_up.eval()
        backbone.model.load_state_dict(model.state_dict())
        given = (raw.flip(1) if step == -1 else raw) - torch.tensor(MEAN).view(-1, 1, 1)
        outputs = backbone(given / torch.tensor(STD).view(-1, 1, 1))
        for ours, theirs in zip(outputs.values(), expected[1:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not [name for name in backbone.state_dict() if "normalization" in name]


def test_the_config_may_insist_on_its_normalization_and_is_warned(tiny_cfg, caplog):
    with caplog.at_level(logging.WARNING):
        backbone = build(use_timm(tiny_cfg, "test_resnet", NORMALIZATION="config")).bottom_up
    assert isinstance(backbone.normalization, torch.nn.Identity)
    assert f"INPUT.FORMAT {tiny_cfg.INPUT.FORMAT}" in caplog.text
    assert "with MODEL.TIMM.NORMALIZATION config images are not converted" in caplog.text


def test_no_warning_where_config_and_model_agree(tiny_cfg, caplog):
    with caplog.at_level(logging.WARNING):
        backbone = build(use_timm(tiny_cfg, "resnet18")).bottom_up
    assert isinstance(backbone.normalization, torch.nn.Identity)
    assert not caplog.records


def test_normalization_maps_white_to_its_value():
    normalization = InputNormalization([0.0] * 3, [1.0] * 3, [127.5] * 3, [127.5] * 3, reverse_channels=False)
    torch.testing.assert_close(normalization(torch.full((1, 3, 2, 2), 255.0)), torch.ones(1, 3, 2, 2))


def test_images_of_one_channel_are_taken(tiny_cfg):
    cfg = use_timm(tiny_cfg, "resnet18")
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "L", [127.5], [127.5]
    assert build(cfg)(torch.randn(1, 1, *SIZE))["p2"].shape == (1, 32, 16, 24)


def test_p6_is_off_unless_asked_for(tiny_cfg):
    tiny_cfg.MODEL.FPN.P6 = True
    outputs = build(use_timm(tiny_cfg, "resnet18"))(torch.randn(1, 3, 128, 128))
    assert torch.equal(outputs["p6"], outputs["p5"][:, :, ::2, ::2])


def test_out_indices_choose_the_maps(tiny_cfg):
    tiny_cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    backbone = build(use_timm(tiny_cfg, "convnext_atto", OUT_INDICES=[1, 2]))
    assert list(backbone.output_shape()) == ["p3", "p4"]
    assert not any("stages_3" in name for name, _ in backbone.named_parameters())


def test_unused_maps_are_warned_about_and_their_parameters_have_no_gradients(tiny_cfg, caplog):
    tiny_cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3"]
    for indices, unused in (((), {"layer3", "layer4"}), ((1, 2), set())):
        caplog.clear()
        backbone = build(use_timm(tiny_cfg, "resnet18", OUT_INDICES=indices))
        sum(x.mean() for x in backbone(torch.randn(1, 3, *SIZE)).values()).backward()
        without = {name.split(".")[2] for name, parameter in backbone.named_parameters() if parameter.grad is None}
        assert without == unused
        assert ("res4, res5 of MODEL.TIMM.NAME resnet18 are computed but not used" in caplog.text) == bool(unused)


def test_p6_without_p5_is_refused(tiny_cfg):
    tiny_cfg.MODEL.FPN.IN_FEATURES, tiny_cfg.MODEL.FPN.P6 = ["res2", "res3", "res4"], True
    with pytest.raises(ValueError, match=r"MODEL.FPN.P6 .*add res5 to MODEL.FPN.IN_FEATURES"):
        build(use_timm(tiny_cfg, "resnet18"))


def test_what_a_model_needs_is_what_images_are_padded_to(tiny_cfg):
    assert build(use_timm(tiny_cfg, "resnet18", SIZE_DIVISIBILITY=48)).size_divisibility == 96
    # Its windows are as large as its last map, so that the size must be a multiple of 256.
    with pytest.raises(ValueError, match=r"maxvit.*SIZE_DIVISIBILITY"):
        check_maps(timm.create_model("maxvit_rmlp_pico_rw_256", features_only=True), "maxvit", 3)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("resnet5", {}, "'resnet5' is unknown to timm.*similar names are"),
        ("resnet18.tv_in22k", {}, "resnet18.tv_in1k"),
        ("test_vit", {}, "{'res4': 16}.*build_vit_sfp_backbone"),  # one stride
        ("vit_tiny_patch16_224", {}, "does not take images of any size.*build_vit_sfp_backbone"),
        ("coatnet_nano_rw_224", {}, "does not take images of any size"),
        ("resnet18", {"OUT_INDICES": [2, 3, 4]}, r"IN_FEATURES \['res2'.*gives {'res3': 8, 'res4': 16, 'res5': 32}"),
        ("resnet18", {"OUT_INDICES": [7]}, r"OUT_INDICES \(7,\)"),
        ("vgg11_bn", {"DROP_PATH": 0.1}, "set MODEL.TIMM.DROP_PATH 0"),
        (
            "twins_svt_small",
            {"GRAD_CHECKPOINTING": True},
            "twins_svt_small has no gradient checkpointing: set MODEL.TIMM.GRAD",
        ),
        ("hrnet_w18_small", {"FREEZE_AT": 3}, "FREEZE_AT 3.*use 0"),
        ("resnet18", {"FREEZE_AT": 6}, r"FREEZE_AT 6.*strides \[2, 4, 8, 16, 32\]"),
        ("resnet18", {"NORMALIZATION": "both"}, "'both': use model or config"),
    ],
)
def test_what_cannot_be_built_is_refused_by_the_key_to_change(tiny_cfg, name, keys, message):
    with pytest.raises(ValueError, match=message):
        build(use_timm(tiny_cfg, name, **keys))


def test_a_detector_trains_and_detects_with_it(tiny_cfg, make_inputs):
    model = build_model(use_timm(tiny_cfg, "test_efficientnet"))
    losses = model.train()(make_inputs([2, 1]))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    (output, _) = model.eval()(make_inputs([1, 1]))
    assert len(output["instances"]) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_on_cuda_half_precision_gives_nearly_the_same_maps_and_finite_gradients(tiny_cfg, name):
    backbone = build(use_timm(tiny_cfg, name)).eval().cuda()
    images = torch.randn(1, 3, *SIZE, device="cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        outputs = backbone(images)
        sum(x.float().square().mean() for x in outputs.values()).backward()
    gradients = [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    for exact, rounded in zip(backbone(images).values(), outputs.values(), strict=True):
        assert (exact - rounded.float()).abs().max() < 0.05 * exact.abs().max()
