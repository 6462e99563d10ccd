"""Checkpoints of other projects, against forward passes written down here from what those projects compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FeaturePyramidNetwork, box_convert

from dynamic_sparse_rcnn import read_checkpoint
from dynamic_sparse_rcnn.checkpoints import convert_state_dict
from dynamic_sparse_rcnn.checkpoints.loading import StrictCheckpointer
from dynamic_sparse_rcnn.cli import main

CHANNELS, HIDDEN, DYNAMIC, CLASSES, PROPOSALS, STAGES, HEADS = 32, 64, 16, 3, 8, 2, 4
LAYER_CHANNELS = (64, 128, 256, 512)


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def mmdetection_stage() -> dict[str, tuple[int, ...]]:
    """Names and shapes of one stage of mmdetection's head, as its documentation of the layers has them."""
    interaction = "instance_interactive_conv"
    shapes = {
        "attention.attn.in_proj_weight": (3 * CHANNELS, CHANNELS),
        "attention.attn.in_proj_bias": (3 * CHANNELS,),
        **linear("attention.attn.out_proj", CHANNELS, CHANNELS),
        **norm("attention_norm", CHANNELS),
        **linear(f"{interaction}.dynamic_layer", CHANNELS, 2 * CHANNELS * DYNAMIC),
        **norm(f"{interaction}.norm_in", DYNAMIC),
        **norm(f"{interaction}.norm_out", CHANNELS),
        **linear(f"{interaction}.fc_layer", CHANNELS * 49, CHANNELS),
        **norm(f"{interaction}.fc_norm", CHANNELS),
        **norm(f"{interaction}_norm", CHANNELS),
        **linear("ffn.layers.0.0", CHANNELS, HIDDEN),
        **linear("ffn.layers.1", HIDDEN, CHANNELS),
        **norm("ffn_norm", CHANNELS),
        **linear("cls_fcs.0", CHANNELS, CHANNELS, bias=False),
        **norm("cls_fcs.1", CHANNELS),
        **linear("fc_cls", CHANNELS, CLASSES),
        **linear("fc_reg", CHANNELS, 4),
    }
    for layer in range(3):
        shapes |= linear(f"reg_fcs.{3 * layer}", CHANNELS, CHANNELS, bias=False)
        shapes |= norm(f"reg_fcs.{3 * layer + 1}", CHANNELS)
    return shapes


def mmdetection_checkpoint(backbone: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random values under mmdetection's names."""
    shapes = {
        f"roi_head.bbox_head.{stage}.{name}": shape
        for stage in range(STAGES)
        for name, shape in mmdetection_stage().items()
    }
    shapes["rpn_head.init_proposal_features.weight"] = (PROPOSALS, CHANNELS)
    for level, channels in enumerate(LAYER_CHANNELS):
        shapes[f"neck.lateral_convs.{level}.conv.weight"] = (CHANNELS, channels, 1, 1)
        shapes[f"neck.fpn_convs.{level}.conv.weight"] = (CHANNELS, CHANNELS, 3, 3)
        shapes |= {f"neck.{kind}_convs.{level}.conv.bias": (CHANNELS,) for kind in ("lateral", "fpn")}
    state = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
    centres, sizes = torch.rand(PROPOSALS, 2), 0.2 + 0.5 * torch.rand(PROPOSALS, 2)
    state["rpn_head.init_proposal_bboxes.weight"] = torch.cat([centres, sizes], 1)
    return state | {f"backbone.{name}": value for name, value in backbone.items() if not name.startswith("fc.")}


@pytest.fixture
def resnet() -> ResNet:
    """torchvision's ResNet-18, with batch norms that do something."""
    model = ResNet(BasicBlock, [2, 2, 2, 2]).eval()
    for name, value in model.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            value.copy_(torch.rand_like(value.float()) + 0.5)
    return model


def apply_layers(state: dict[str, Tensor], features: Tensor, number: int) -> Tensor:
    for layer in range(number):
        features = features @ state[f"{3 * layer}.weight"].T
        features = F.relu(layer_norm(state, str(3 * layer + 1), features))
    return features


def layer_norm(state: dict[str, Tensor], name: str, features: Tensor) -> Tensor:
    return F.layer_norm(features, features.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def mmdetection_stage_forward(
    state: dict[str, Tensor], features: Tensor, rois: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits, deltas and features of one image: (P, C) features and (P, C, 7, 7) rois in."""
    attention = nn.MultiheadAttention(CHANNELS, HEADS)
    attention.load_state_dict(under(state, "attention.attn."))
    sequence = features[:, None]  # (P, 1, C)
    features = layer_norm(state, "attention_norm", features + attention(sequence, sequence, sequence)[0][:, 0])
    conv = under(state, "instance_interactive_conv.")
    parameters = features @ conv["dynamic_layer.weight"].T + conv["dynamic_layer.bias"]
    split = CHANNELS * DYNAMIC
    first = parameters[:, :split].reshape(-1, CHANNELS, DYNAMIC)
    second = parameters[:, split:].reshape(-1, DYNAMIC, CHANNELS)
    inside = torch.einsum("pchw,pcd->phwd", rois, first)
    inside = F.relu(layer_norm(conv, "norm_in", inside))
    inside = F.relu(layer_norm(conv, "norm_out", torch.einsum("phwd,pdc->phwc", inside, second)))
    inside = inside.reshape(len(features), -1) @ conv["fc_layer.weight"].T + conv["fc_layer.bias"]
    seen = F.relu(layer_norm(conv, "fc_norm", inside))
    features = layer_norm(state, "instance_interactive_conv_norm", features + seen)
    wide = F.relu(features @ state["ffn.layers.0.0.weight"].T + state["ffn.layers.0.0.bias"])
    narrow = wide @ state["ffn.layers.1.weight"].T + state["ffn.layers.1.bias"]
    features = layer_norm(state, "ffn_norm", features + narrow)
    classes, boxes = (apply_layers(under(state, f"{kind}_fcs."), features, n) for kind, n in (("cls", 1), ("reg", 3)))
    logits = classes @ state["fc_cls.weight"].T + state["fc_cls.bias"]
    return logits, boxes @ state["fc_reg.weight"].T + state["fc_reg.bias"], features


def mmdetection_forward(state: dict[str, Tensor], resnet: ResNet, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (P, K) and boxes (P, 4) of the last stage for a (3, H, W) RGB image whose sides are multiples of 32."""
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    normalised = ((image - mean[:, None, None]) / deviation[:, None, None])[None]
    maps = IntermediateLayerGetter(resnet, {f"layer{n}": str(n - 1) for n in range(1, 5)})(normalised)
    pyramid = FeaturePyramidNetwork(list(LAYER_CHANNELS), CHANNELS)
    renamed = {}
    for name, value in under(state, "neck.").items():
        kind, level, rest = name.split(".", 2)
        block = "inner_blocks" if kind == "lateral_convs" else "layer_blocks"
        renamed[f"{block}.{level}.0.{rest.removeprefix('conv.')}"] = value
    pyramid.load_state_dict(renamed)
    levels = pyramid(maps)
    height, width = image.shape[1:]
    boxes = box_convert(state["rpn_head.init_proposal_bboxes.weight"], "cxcywh", "xyxy")
    boxes = boxes * torch.tensor([width, height, width, height])
    features = state["rpn_head.init_proposal_features.weight"]
    for stage in range(STAGES):
        rois = pool(levels, boxes)
        logits, deltas, features = mmdetection_stage_forward(
            under(state, f"roi_head.bbox_head.{stage}."), features, rois
        )
        boxes = refine(boxes, deltas * torch.tensor([0.5, 0.5, 1.0, 1.0]))
    return logits, boxes


def pool(levels: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """mmdetection's extractor: level floor(log2(scale / 56)), aligned RoIAlign with 2 samples a cell and axis."""
    level = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().div(56).add(1e-6).log2().floor().clamp(0, 3)
    pooled = torch.zeros(len(boxes), CHANNELS, 7, 7)
    for number in range(4):
        chosen = level == number
        scale = 1 / 2 ** (number + 2)
        pooled[chosen] = torchvision.ops.roi_align(levels[str(number)], [boxes[chosen]], 7, scale, 2, aligned=True)
    return pooled


def refine(boxes: Tensor, deltas: Tensor) -> Tensor:
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    limit = torch.tensor(1000 / 16).log()
    centres = centres + sizes * deltas[:, :2]
    sizes = sizes * deltas[:, 2:].clamp(-limit, limit).exp()
    return torch.cat([centres - sizes / 2, centres + sizes / 2], 1)


@pytest.fixture
def pytorch_style_cfg(tiny_cfg) -> CfgNode:
    """As configs/Base-SparseRCNN.yaml has it: strides in 3x3 convolutions, RGB, torchvision's normalisation."""
    tiny_cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    tiny_cfg.MODEL.PIXEL_MEAN, tiny_cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    tiny_cfg.INPUT.FORMAT = "RGB"
    return tiny_cfg


@pytest.mark.parametrize("frozen", [False, True])
@torch.no_grad()
def test_mmdetections_checkpoint_gives_what_mmdetection_computes(pytorch_style_cfg, resnet, tmp_path, frozen):
    state = mmdetection_checkpoint(resnet.state_dict())
    torch.save({"meta": {"epoch": 36}, "state_dict": state}, tmp_path / "mmdetection.pth")
    pytorch_style_cfg.MODEL.RESNETS.NORM = "FrozenBN" if frozen else "BN"
    model = build_model(pytorch_style_cfg).eval()
    StrictCheckpointer(model).load(str(tmp_path / "mmdetection.pth"))
    image = torch.randint(0, 256, (3, 96, 128)).float()
    logits, boxes = mmdetection_forward(state, resnet, image)
    predictions = model.predict(model.preprocess_image([{"image": image}]))
    assert torch.allclose(predictions.logits[-1, 0], logits, atol=1e-4)
    assert torch.allclose(predictions.boxes[-1, 0], boxes, atol=1e-2)
    assert (boxes - boxes[0]).abs().max() > 10


@torch.no_grad()
def test_torchvisions_resnet_gives_its_feature_maps_behind_the_detector(pytorch_style_cfg, resnet):
    model = build_model(pytorch_style_cfg).eval()
    conversion = convert_state_dict(resnet.state_dict(), model.state_dict())
    assert "ResNet" in conversion.source
    assert {"fc.weight", "fc.bias"} <= set(conversion.not_used)
    incompatible = model.load_state_dict(conversion.state_dict, strict=False)
    assert not incompatible.unexpected_keys
    assert not [name for name in incompatible.missing_keys if "bottom_up" in name and "num_batches" not in name]
    image = torch.randn(1, 3, 64, 96)
    expected = IntermediateLayerGetter(resnet, {f"layer{n}": f"res{n + 1}" for n in range(1, 5)})(image)
    found = model.backbone.bottom_up(image)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max())), name


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
@torch.no_grad()
def test_timms_backbones_give_their_feature_maps_behind_the_detector(tiny_cfg, name):
    timm = pytest.importorskip("timm")
    tiny_cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    tiny_cfg.MODEL.TIMM.NAME, tiny_cfg.MODEL.TIMM.NORMALIZATION = name, "config"
    backbone = nn.ModuleDict({"backbone": build_backbone(tiny_cfg)}).eval()
    whole = timm.create_model(name).eval()
    conversion = convert_state_dict(whole.state_dict(), backbone.state_dict())
    assert "timm" in conversion.source
    backbone.load_state_dict(conversion.state_dict, strict=False)
    image = torch.randn(1, 3, 64, 96)
    expected = whole.forward_intermediates(image, intermediates_only=True)[-4:]
    found = backbone["backbone"].bottom_up(image)
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for one, other in zip(found.values(), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_names_of_nobody_are_left_as_they_are(tiny_cfg):
    conversion = convert_state_dict({"module.strange": torch.ones(1)}, build_model(tiny_cfg).state_dict())
    assert conversion.source == "" and list(conversion.state_dict) == ["strange"]


def test_the_tool_writes_a_checkpoint_in_our_names(pytorch_style_cfg, resnet, tmp_path, capsys):
    state = mmdetection_checkpoint(resnet.state_dict())
    torch.save({"state_dict": state}, tmp_path / "mmdetection.pth")
    config = tmp_path / "config.yaml"
    config.write_text(pytorch_style_cfg.dump())
    target = tmp_path / "ours.safetensors"
    arguments = ["convert", "--config-file", str(config), str(tmp_path / "mmdetection.pth"), str(target)]
    main(arguments)
    found = read_checkpoint(target)["model"]
    wanted = build_model(pytorch_style_cfg).state_dict()
    assert found.keys() == wanted.keys()
    assert torch.equal(found["init_proposal_boxes.weight"], state["rpn_head.init_proposal_bboxes.weight"])
    assert "mmdetection" in capsys.readouterr().out
    main([*arguments, "--half"])
    half = read_checkpoint(target)["model"]
    assert half["head.head_series.1.class_logits.weight"].dtype == torch.float16
    assert {value.dtype for name, value in half.items() if "running_" in name} == {torch.float32}


@pytest.mark.parametrize(("stages", "named"), [(1, "head.head_series.1."), (3, "head.head_series.2.")])
def test_the_tool_refuses_a_checkpoint_with_fewer_or_more_stages(tiny_cfg, tmp_path, capsys, stages, named):
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    tiny_cfg.MODEL.SparseRCNN.NUM_HEADS = stages
    torch.save({"model": build_model(tiny_cfg).state_dict()}, tmp_path / "model.pth")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "model.pth"), str(tmp_path / "new.pth")])
    error = capsys.readouterr().err
    assert f"does not fit the model that {tmp_path}/config.yaml describes, in " in error
    assert f"tensors such as {named}" in error and error.count("\n") == 1
    assert not (tmp_path / "new.pth").exists()


def test_the_tool_leaves_out_a_classifier_and_does_without_counters(pytorch_style_cfg, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(pytorch_style_cfg.dump())
    state = build_model(pytorch_style_cfg).state_dict()
    kept = {name: value for name, value in state.items() if "num_batches_tracked" not in name}
    assert len(kept) < len(state)
    classifier = {"backbone.bottom_up.linear.weight": torch.zeros(1000, 512)}
    torch.save({"model": kept | classifier}, tmp_path / "model.pth")
    main(["convert", str(tmp_path / "model.pth"), str(tmp_path / "new.pth")])
    assert "1 not in the model, left out: backbone.bottom_up.linear.weight" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "new.pth")["model"].keys() == kept.keys()


def test_the_tool_refuses_a_checkpoint_of_another_model(pytorch_style_cfg, resnet, tmp_path, capsys):
    torch.save(mmdetection_checkpoint(resnet.state_dict()), tmp_path / "mmdetection.pth")
    pytorch_style_cfg.MODEL.SparseRCNN.NUM_CLASSES = 7
    (tmp_path / "config.yaml").write_text(pytorch_style_cfg.dump())
    with pytest.raises(SystemExit):  # the config is that beside the checkpoint
        main(["convert", str(tmp_path / "mmdetection.pth"), "x.safetensors"])
    printed, error = capsys.readouterr()
    assert "head.head_series.0.class_logits.weight" in printed
    assert error.startswith("error: ") and "does not fit the model that" in error and error.count("\n") == 1


def test_a_config_beside_a_foreign_checkpoint_runs_no_code(tiny_cfg, tmp_path, capsys):
    trace = tmp_path / "trace"
    torch.save({"model": build_model(tiny_cfg).state_dict()}, tmp_path / "model_final.pth")
    tag = f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{trace}']"
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump().replace(f"OUTPUT_DIR: {tiny_cfg.OUTPUT_DIR}", tag))
    arguments = ["convert", str(tmp_path / "model_final.pth"), str(tmp_path / "ours.pth")]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--trust-checkpoint" in capsys.readouterr().err and not trace.exists()
    main([*arguments, "--trust-checkpoint"])
    assert trace.exists() and (tmp_path / "ours.pth").exists()
