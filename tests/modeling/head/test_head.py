"""The dynamic head: initialization by name, interaction, refinement, precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from timing import peak_memory
from torchvision.ops import RoIPool

from dynamic_sparse_rcnn import DynamicConv, DynamicHead

SHAPES = {f"p{level}": ShapeSpec(channels=32, stride=2**level) for level in range(2, 6)}


def make_features(images: int = 2, size: int = 64) -> dict[str, torch.Tensor]:
    return {name: torch.randn(images, 32, size // s.stride, size // s.stride) for name, s in SHAPES.items()}


def make_proposals(images: int = 2, proposals: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    left_top = 30 * torch.rand(images, proposals, 2)
    boxes = torch.cat([left_top, left_top + 4 + 30 * torch.rand(images, proposals, 2)], dim=-1)
    return boxes, torch.randn(images, proposals, 32)


@pytest.mark.parametrize("num_classes", [1, 3, 4, 32, 64, 80, 256])
def test_parameters_are_initialized_by_name_whatever_the_number_of_classes(tiny_cfg, num_classes):
    tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = num_classes
    head = DynamicHead(tiny_cfg, SHAPES)
    bias = -math.log(0.99 / 0.01)
    for name, parameter in head.named_parameters():
        if name.endswith("class_logits.bias"):
            assert parameter.tolist() == pytest.approx([bias] * num_classes), name
            continue
        assert not torch.isclose(parameter, torch.tensor(bias)).any(), name
        if parameter.dim() == 2:
            fan_out, fan_in = parameter.shape
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert parameter.abs().max() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25), name
        elif "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name


def test_dynamic_convolution_equals_each_proposal_filtering_its_own_roi():
    convolution = DynamicConv(channels=6, dynamic_channels=4, pooler_resolution=3).double()
    proposals, rois = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 9, 6, dtype=torch.float64)
    filters = convolution.dynamic_layer(proposals)
    expected = []
    for proposal in range(5):
        first, second = filters[proposal, :24].view(6, 4), filters[proposal, 24:].view(4, 6)
        cells = []
        for cell in rois[proposal]:
            cell = convolution.norm1(cell @ first).relu()
            cells.append(convolution.norm2(cell @ second).relu())
        expected.append(convolution.norm3(convolution.out_layer(torch.cat(cells))).relu())
    torch.testing.assert_close(convolution(proposals, rois), torch.stack(expected))


def test_a_dynamic_convolution_can_compute_its_largest_tensor_again_instead_of_keeping_it():
    convolution = DynamicConv(channels=64, dynamic_channels=16, pooler_resolution=7)
    proposals, rois = torch.randn(20, 64), torch.randn(20, 49, 64)
    runs = 4

    def peak() -> int:
        return peak_memory(lambda: [convolution(proposals, rois) for _ in range(runs)], "cpu")

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(convolution(proposals, rois).square().sum(), list(convolution.parameters()))

    kept, expected = peak(), gradients()
    convolution.recomputing_devices = frozenset({"cpu"})
    assert kept - peak() >= (runs - 1) * 4 * 20 * 49 * 64
    torch.testing.assert_close(gradients(), expected)
    convolution.eval()
    assert peak() == kept


def test_a_head_that_predicts_no_change_returns_the_proposal_boxes(tiny_cfg):
    head = DynamicHead(tiny_cfg, SHAPES)
    for stage in head.head_series:
        torch.nn.init.zeros_(stage.bboxes_delta.weight)
        torch.nn.init.zeros_(stage.bboxes_delta.bias)
    boxes, features = make_proposals()
    predictions = head(make_features(), boxes, features)
    assert predictions.logits.shape == (2, 2, 8, 3)
    for stage_boxes in predictions.boxes:
        torch.testing.assert_close(stage_boxes, boxes)


def test_deltas_move_and_scale_boxes_by_the_published_weights(tiny_cfg):
    head = DynamicHead(tiny_cfg, SHAPES)
    refined = head._refine(torch.tensor([[[10.0, 20, 30, 60]]]), torch.tensor([[[2.0, -1, math.log(2), 100]]]))
    x1, y1, x2, y2 = refined[0, 0].tolist()
    assert (x1 + x2) / 2 == pytest.approx(20 + 2 / 2 * 20)
    assert (y1 + y2) / 2 == pytest.approx(40 - 1 / 2 * 40)
    assert x2 - x1 == pytest.approx(2 * 20)
    assert y2 - y1 == pytest.approx(100000 / 16 * 40, rel=1e-5)


@pytest.mark.parametrize("stage", [0, 1])
def test_boxes_are_detached_between_stages_and_features_are_not(tiny_cfg, stage):
    head = DynamicHead(tiny_cfg, SHAPES)
    boxes, features = make_proposals()
    boxes.requires_grad_()
    features.requires_grad_()
    head(make_features(), boxes, features).boxes[stage].sum().backward()
    # The proposals' own boxes learn from the first stage.
    assert bool(boxes.grad is not None and boxes.grad.any()) == (stage == 0)
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    other = head.head_series[1 - stage].bboxes_delta
    assert not any(p.grad is not None and p.grad.any() for p in other.parameters())


def test_each_stage_starts_from_the_features_and_boxes_of_the_one_before_it(tiny_cfg):
    tiny_cfg.MODEL.SparseRCNN.NUM_HEADS = 3
    head = DynamicHead(tiny_cfg, SHAPES).eval()
    features, (boxes, proposal_features) = make_features(), make_proposals()
    predictions = head(features, boxes, proposal_features)
    for index, stage in enumerate(head.head_series):
        pooled = torch.cat(
            [head.box_pooler([features[n][i : i + 1] for n in SHAPES], [Boxes(boxes[i])]) for i in range(2)]
        )
        logits, deltas, proposal_features = stage(proposal_features, pooled.flatten(2).transpose(1, 2))
        boxes = torch.stack([head.box_transform.apply_deltas(deltas[i], boxes[i]) for i in range(2)])
        torch.testing.assert_close(predictions.logits[index], logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(predictions.boxes[index], boxes, rtol=1e-4, atol=1e-2)


def test_images_of_a_batch_do_not_see_each_other(tiny_cfg):
    head = DynamicHead(tiny_cfg, SHAPES).eval()
    features, (boxes, proposal_features) = make_features(), make_proposals()
    together = head(features, boxes, proposal_features)
    for image in range(2):
        one = slice(image, image + 1)
        alone = head({k: v[one] for k, v in features.items()}, boxes[one], proposal_features[one])
        torch.testing.assert_close(alone.logits, together.logits[:, one], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.boxes, together.boxes[:, one], rtol=1e-4, atol=1e-3)


def test_under_autocast_boxes_stay_float32_and_pooling_is_not_rounded(tiny_cfg):
    head = DynamicHead(tiny_cfg, SHAPES).eval()
    features, (boxes, proposal_features) = make_features(), make_proposals()
    pooled = []
    head.box_pooler.register_forward_hook(lambda module, inputs, output: pooled.append(output))
    with torch.no_grad():
        head(features, boxes, proposal_features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predictions = head(features, boxes, proposal_features)
    assert predictions.boxes.dtype == torch.float32
    assert predictions.logits.dtype == torch.bfloat16
    torch.testing.assert_close(pooled[2], pooled[0])


def gradients_of_head(head: DynamicHead) -> dict[str, torch.Tensor]:
    """Of the maps, the proposal features and the parameters; the same inputs and random numbers each time."""
    torch.manual_seed(1)
    features, (boxes, proposal_features) = make_features(), make_proposals()
    inputs = {**features, "proposal_features": proposal_features}
    wanted = {name: x.requires_grad_() for name, x in inputs.items()} | dict(head.named_parameters())
    predictions = head(features, boxes, proposal_features)
    loss = predictions.logits.square().sum() + predictions.boxes.sum() / 100
    return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))


def test_recomputed_activations_give_the_same_gradients(tiny_cfg):
    tiny_cfg.MODEL.SparseRCNN.DROPOUT = 0.5
    expected = gradients_of_head(DynamicHead(tiny_cfg, SHAPES))
    tiny_cfg.MODEL.SparseRCNN.GRAD_CHECKPOINTING = True
    torch.manual_seed(0)
    head = DynamicHead(tiny_cfg, SHAPES)
    runs = []
    head.head_series[0].inst_interact.register_forward_hook(lambda *_: runs.append(1))
    torch.testing.assert_close(gradients_of_head(head), expected)
    assert len(runs) == 2
    head.eval()(make_features(), *make_proposals())
    assert len(runs) == 3


def test_another_pooling_of_detectron2_can_be_configured(tiny_cfg):
    tiny_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool"
    head = DynamicHead(tiny_cfg, SHAPES)
    assert {type(pooler) for pooler in head.box_pooler.level_poolers} == {RoIPool}
    maps = list(make_features().values())
    # A box that RoIPool rounds to 7 x 7 cells of the finest map, where RoIAlign would interpolate.
    pooled = head._pool(maps, torch.tensor([[[0.0, 0, 24, 24]]] * 2))
    torch.testing.assert_close(pooled, maps[0][:, :, :7, :7].flatten(2).transpose(1, 2))


def test_dropout_and_activation_follow_the_config(tiny_cfg):
    tiny_cfg.MODEL.SparseRCNN.DROPOUT = 0.5
    tiny_cfg.MODEL.SparseRCNN.ACTIVATION = "gelu"
    head = DynamicHead(tiny_cfg, SHAPES)
    arguments = make_features(), *make_proposals()
    assert head.head_series[0].activation is F.gelu
    assert not torch.equal(head(*arguments).logits, head(*arguments).logits)
    head.eval()
    torch.testing.assert_close(head(*arguments).logits, head(*arguments).logits)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NUM_CLASSES", 0),
        ("NUM_HEADS", 0),
        ("PRIOR_PROB", 0.0),
        ("USE_FOCAL", False),
        ("NUM_DYNAMIC", 3),
        ("ACTIVATION", "glu"),
        ("HIDDEN_DIM", 64),
        ("HIDDEN_DIM", 30),
    ],
)
def test_what_is_not_supported_is_refused_by_the_name_of_its_key(tiny_cfg, key, value):
    tiny_cfg.MODEL.SparseRCNN[key] = value
    with pytest.raises(ValueError, match=f"MODEL.SparseRCNN.{key}"):
        DynamicHead(tiny_cfg, SHAPES)


def test_a_feature_map_that_the_backbone_lacks_is_named(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p9"]
    with pytest.raises(ValueError, match=r"'p9'.*choose from"):
        DynamicHead(tiny_cfg, SHAPES)
