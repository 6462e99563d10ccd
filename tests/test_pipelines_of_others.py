"""Our detectors inside pipelines that know nothing of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_model
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.ops import box_iou

from dynamic_sparse_rcnn import DetectorWithTTA
from dynamic_sparse_rcnn.cli import main
from dynamic_sparse_rcnn.engine.solver import build_optimizer
from dynamic_sparse_rcnn.modeling.analysis import count_by_part


def test_a_foreign_training_loop_learns(tiny_dynamic_cfg, make_inputs):
    tiny_dynamic_cfg.SOLVER.BASE_LR = 1e-3
    model = build_model(tiny_dynamic_cfg).train()
    optimizer, inputs = build_optimizer(tiny_dynamic_cfg, model), make_inputs([2, 1])
    totals = []
    for _ in range(8):
        losses = model(inputs)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]


def build_regnet(cfg, input_shape) -> Backbone:
    bottom_up = RegNet(
        stem_class=SimpleStem,
        stem_width=16,
        block_class=ResBottleneckBlock,
        depth=6,
        w_a=12.0,
        w_0=16,
        w_m=1.8,
        group_width=8,
        norm="BN",
        out_features=["s1", "s2", "s3"],
    )
    return FPN(bottom_up, ["s1", "s2", "s3"], cfg.MODEL.FPN.OUT_CHANNELS)


class TopDownAndBottomUp(Backbone):
    """A pyramid that, like BiFPN, passes features down and up again; all levels have one width."""

    def __init__(self, cfg) -> None:
        super().__init__()
        width = cfg.MODEL.FPN.OUT_CHANNELS
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.downs = nn.ModuleList([nn.Conv2d(width, width, 3, 2, 1) for _ in range(2)])
        self.ups = nn.ModuleList([nn.ConvTranspose2d(width, width, 2, 2) for _ in range(2)])

    @property
    def size_divisibility(self) -> int:
        return 16

    def forward(self, image):
        p2 = self.stem(image)
        p3 = self.downs[0](p2)
        p4 = self.downs[1](p3)
        p3 = p3 + self.ups[1](p4)
        return {"p2": p2 + self.ups[0](p3), "p3": p3, "p4": p4 + self.downs[1](p3)}

    def output_shape(self):
        width = self.stem.out_channels
        return {name: ShapeSpec(channels=width, stride=stride) for name, stride in (("p2", 4), ("p3", 8), ("p4", 16))}


def build_top_down_and_bottom_up(cfg, input_shape) -> Backbone:
    return TopDownAndBottomUp(cfg)


def build_vitdet(cfg, input_shape) -> Backbone:
    vit = pytest.importorskip("detectron2.modeling.backbone.vit", reason="detectron2 0.6 has no ViT")
    net = vit.ViT(img_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=2, out_feature="last_feat")
    return vit.SimpleFeaturePyramid(
        net, "last_feat", cfg.MODEL.FPN.OUT_CHANNELS, scale_factors=(4.0, 2.0, 1.0), norm="LN", square_pad=96
    )


@pytest.mark.parametrize("build", [build_regnet, build_top_down_and_bottom_up, build_vitdet])
def test_any_pyramid_that_is_registered_can_be_the_backbone(tiny_dynamic_cfg, make_inputs, build, monkeypatch):
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, build.__name__, build)
    tiny_dynamic_cfg.MODEL.BACKBONE.NAME = build.__name__
    tiny_dynamic_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4"]
    model = build_model(tiny_dynamic_cfg)
    losses = model.train()(make_inputs([2, 1]))
    sum(losses.values()).backward()
    first = next(parameter for parameter in model.backbone.parameters() if parameter.requires_grad)
    assert first.grad is not None and first.grad.abs().sum() > 0
    with torch.no_grad():
        detections = model.eval()(make_inputs([1]))[0]["instances"]
    assert len(detections) > 0 and detections.pred_boxes.tensor.isfinite().all()


class Counter(DatasetEvaluator):
    def reset(self) -> None:
        self.found: list[int] = []

    def process(self, inputs, outputs) -> None:
        self.found += [len(output["instances"]) for output in outputs]

    def evaluate(self):
        return {type(self).__name__: {"images": len(self.found), "detections": sum(self.found)}}


class SecondCounter(Counter):
    pass


def test_detectron2s_evaluation_loop_runs_several_evaluators(tiny_cfg, make_inputs):
    model = build_model(tiny_cfg)
    loader = [make_inputs([1]), make_inputs([2])]
    results = inference_on_dataset(model, loader, DatasetEvaluators([Counter(), SecondCounter()]))
    assert results["Counter"] == results["SecondCounter"]
    assert results["Counter"]["images"] == 2 and results["Counter"]["detections"] > 0
    assert model.training


class PaintedSquares(nn.Module):
    """Finds the one bright square of each image, to the pixel."""

    def forward(self, batched_inputs):
        outputs = []
        for inputs in batched_inputs:
            bright = inputs["image"].float().mean(0) > 128
            rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
            box = [[float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]]
            instances = Instances(bright.shape, pred_boxes=Boxes(torch.tensor(box)))
            instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([1])
            outputs.append({"instances": instances})
        return outputs


def test_test_time_augmentation_maps_boxes_back_and_merges_them(tiny_cfg):
    tiny_cfg.TEST.AUG.MIN_SIZES, tiny_cfg.TEST.AUG.MAX_SIZE, tiny_cfg.TEST.AUG.FLIP = (50, 100, 150), 300, True
    original = np.zeros((100, 160, 3), np.uint8)
    original[20:60, 30:90] = 255
    resized = T.ResizeShortestEdge(80, 200).get_transform(original).apply_image(original)
    inputs = {"image": torch.as_tensor(resized.transpose(2, 0, 1).copy()), "height": 100, "width": 160}
    seen = []
    model = PaintedSquares().eval()
    model.register_forward_pre_hook(lambda module, arguments: seen.extend(arguments[0]))
    (output,) = DetectorWithTTA(tiny_cfg, model).eval()([inputs])
    assert len(seen) == 6
    found = output["instances"]
    assert len(found) == 1 and found.image_size == (100, 160)
    assert box_iou(found.pred_boxes.tensor, torch.tensor([[30.0, 20.0, 90.0, 60.0]]))[0, 0] > 0.93
    assert (float(found.scores[0]), int(found.pred_classes[0])) == (pytest.approx(0.9), 1)


def test_test_time_augmentation_of_a_detector_keeps_its_contract(tiny_dynamic_cfg, make_inputs):
    tiny_dynamic_cfg.TEST.AUG.MIN_SIZES, tiny_dynamic_cfg.TEST.AUG.MAX_SIZE = (64, 96), 160
    tiny_dynamic_cfg.TEST.DETECTIONS_PER_IMAGE = 5
    model = build_model(tiny_dynamic_cfg)
    wrapped = DetectorWithTTA(tiny_dynamic_cfg, model)
    results = inference_on_dataset(wrapped, [make_inputs([1])], DatasetEvaluators([Counter()]))
    assert results["Counter"] == {"images": 1, "detections": 5}
    with torch.no_grad():
        found = wrapped.eval()([{**make_inputs([1])[0], "height": 128, "width": 192}])[0]["instances"]
    assert found.image_size == (128, 192)
    assert (found.scores[:-1] >= found.scores[1:]).all()
    overlap = box_iou(found.pred_boxes.tensor, found.pred_boxes.tensor).fill_diagonal_(0)
    same = found.pred_classes[:, None] == found.pred_classes
    assert (overlap[same] <= tiny_dynamic_cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST).all()
    with pytest.raises(RuntimeError, match=r"eval\(\)"):
        wrapped.train()(make_inputs([1]))


def test_the_analysis_adds_up_and_counts_what_is_known(tiny_dynamic_cfg):
    model = build_model(tiny_dynamic_cfg)
    counts = count_by_part(model, [{"image": torch.rand(3, 64, 96)}], depth=1)
    whole, parts = counts[0], {count.name: count for count in counts[1:]}
    assert set(parts) == {"backbone", "proposal_generator", "head"}
    assert whole.parameters == sum(parameter.numel() for parameter in model.parameters())
    for field in ("parameters", "flops", "activations"):
        total = sum(getattr(part, field) for part in parts.values())
        assert total == pytest.approx(getattr(whole, field), rel=0.01), field
    stages = count_by_part(model, [{"image": torch.rand(3, 64, 96)}], depth=5)
    by_name = {count.name: count for count in stages}
    stage = "head.head_series.0"
    proposals, channels, hidden = 8, 32, 64
    assert by_name[f"{stage}.linear1"].flops == proposals * channels * hidden
    assert by_name[f"{stage}.linear1"].activations == proposals * hidden
    assert by_name[f"{stage}.inst_interact.out_layer"].flops == proposals * channels * 49 * channels


@pytest.mark.parametrize("config", ["shapes/sparse_rcnn_R_18_FPN_20pro.yaml", "lazy/sparse_rcnn_R_50_FPN_300pro_3x.py"])
def test_the_analysis_prints_a_table_of_any_config(config, capsys):
    options = [] if config.endswith(".yaml") else ["model.proposal_generator.num_proposals=5"]
    main(["analyze", config, "--size", "64", "64", "--depth", "1", *options])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("SparseRCNN", "backbone", "head", "GFLOPs"))


def test_detectron2s_visualizer_draws_our_detections(tiny_cfg, make_inputs):
    from detectron2.utils.visualizer import Visualizer

    model, (inputs,) = build_model(tiny_cfg).eval(), make_inputs([1])
    with torch.no_grad():
        found = model([inputs])[0]["instances"].to("cpu")
    metadata = MetadataCatalog.get("three_classes_of_a_test").set(thing_classes=["ant", "bee", "cat"])
    image = np.zeros((*found.image_size, 3), np.uint8)
    assert Visualizer(image, metadata).draw_instance_predictions(found).get_image().any()
