"""The losses on the initial boxes, against a float64 loop over images; and what they make of proposals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from scenes import KINDS, SIDE, draw_scene
from scipy.optimize import linear_sum_assignment
from torch import nn
from torchvision.ops import box_iou, generalized_box_iou

from dynamic_sparse_rcnn import (
    BatchedTargets,
    DynamicProposalGenerator,
    LearnedProposalGenerator,
    StagePredictions,
    TemperatureSchedule,
    build_criterion,
    feature_levels,
    start_criterion,
)

CPU = torch.device("cpu")
NAMES = {"loss_start_bbox", "loss_start_giou"}


@pytest.fixture(params=["HungarianMatcher", "OptimalTransportMatcher"])
def start_cfg(tiny_cfg, request):
    tiny_cfg.MODEL.SparseRCNN.MATCHER = request.param
    tiny_cfg.MODEL.SparseRCNN.DPG.START_LOSS_WEIGHT = 0.5
    return tiny_cfg


def with_start(predictions: StagePredictions) -> StagePredictions:
    """The first stage's boxes, in reverse order, stand for the initial ones."""
    return replace(predictions, initial_boxes=predictions.boxes[0].detach().flip(1).requires_grad_())


def expected_losses(boxes: torch.Tensor, instances: list[Instances], weight: float) -> dict[str, float]:
    """Of (B, P, 4) initial boxes, with the default weights 5 and 2 of L1 and GIoU, in float64."""
    l1 = giou_loss = 0.0
    for own, target in zip(boxes.detach().double(), instances, strict=True):
        wanted = target.gt_boxes.tensor.double()
        height, width = target.image_size
        size = torch.tensor([width, height, width, height], dtype=torch.float64)
        distance, giou = torch.cdist(own / size, wanted / size, p=1), generalized_box_iou(own, wanted)
        rows, columns = map(torch.from_numpy, linear_sum_assignment(5 * distance - 2 * giou))
        l1 += distance[rows, columns].sum().item()
        giou_loss += (1 - giou[rows, columns]).sum().item()
    number = max(1, sum(map(len, instances)))
    return {"loss_start_bbox": 5 * weight * l1 / number, "loss_start_giou": 2 * weight * giou_loss / number}


@pytest.mark.parametrize("counts", [[3, 5], [0, 2], [0, 0], [9, 1], [6] * 8])
def test_losses_are_those_of_a_loop_and_change_no_other(start_cfg, make_instances, make_predictions, counts):
    instances = [make_instances(count) for count in counts]
    targets = BatchedTargets.from_instances(instances, CPU)
    predictions = with_start(make_predictions(2, [(64, 96)] * len(counts), 6))
    losses = build_criterion(start_cfg)(predictions, targets)
    start_cfg.MODEL.SparseRCNN.DPG.START_LOSS_WEIGHT = 0.0
    without = build_criterion(start_cfg)(predictions, targets)
    assert losses.keys() - without.keys() == NAMES
    torch.testing.assert_close({name: losses[name] for name in without}, without)
    for name, expected in expected_losses(predictions.initial_boxes, instances, 0.5).items():
        assert losses[name].item() == pytest.approx(expected, rel=1e-5, abs=1e-7), name


def images(predictions: StagePredictions, chosen: slice) -> StagePredictions:
    """Those of some images of a batch."""
    assert predictions.initial_boxes is not None
    return StagePredictions(
        predictions.logits[:, chosen], predictions.boxes[:, chosen], predictions.initial_boxes[chosen]
    )


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_parts_of_a_batch_add_up_to_it(start_cfg, make_instances, make_predictions, deep_supervision):
    start_cfg.MODEL.SparseRCNN.DEEP_SUPERVISION = deep_supervision
    criterion = build_criterion(start_cfg)
    instances = [make_instances(3), make_instances(1)]
    predictions = with_start(make_predictions(2, [(64, 96)] * 2, 6))
    whole = criterion(predictions, BatchedTargets.from_instances(instances, CPU))
    assert whole.keys() >= NAMES
    parts = [
        (images(predictions, slice(i, i + 1)), BatchedTargets.from_instances([one], CPU))
        for i, one in enumerate(instances)
    ]
    divisor = sum(criterion.count(*part) for part in parts)
    losses = [criterion(*part, divisor=divisor) for part in parts]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in losses), loss, msg=name)


def test_a_negative_weight_is_refused_by_key(tiny_cfg):
    tiny_cfg.MODEL.SparseRCNN.DPG.START_LOSS_WEIGHT = -1.0
    with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.DPG\.START_LOSS_WEIGHT is -1\.0"):
        build_criterion(tiny_cfg)


@pytest.mark.parametrize("architecture", ["SparseRCNN", "DynamicSparseRCNN"])
def test_static_and_dynamic_initial_boxes_learn_from_them(tiny_dynamic_cfg, make_inputs, architecture):
    tiny_dynamic_cfg.MODEL.META_ARCHITECTURE = architecture
    tiny_dynamic_cfg.MODEL.SparseRCNN.INIT_BOXES = "grid"
    tiny_dynamic_cfg.MODEL.SparseRCNN.DPG.START_LOSS_WEIGHT = 1.0
    model = build_model(tiny_dynamic_cfg)
    losses = model(make_inputs([3, 0, 2]))
    sum(losses[name] for name in NAMES).backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    generator = "proposal_generator."
    if architecture == "SparseRCNN":
        assert learning == {f"{generator}init_proposal_boxes.weight"}
    else:
        assert learning >= {f"{generator}expert_proposal_boxes.weight", f"{generator}router.hidden.weight"}
        assert not any(name.startswith("head.") for name in learning)


def scenes(number: int, seed: int) -> tuple[ImageList, dict[str, torch.Tensor], BatchedTargets]:
    """So many scenes, the kinds in turn; instead of a backbone's maps those of fixed random filters."""
    rng = np.random.default_rng(seed)
    pixels, boxes, classes = map(np.stack, zip(*(draw_scene(i % KINDS, rng) for i in range(number)), strict=True))
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 128.0 - 1
    filters = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    p2 = F.conv2d(tensor, filters, stride=4, padding=3).relu()
    sizes = [(SIDE, SIDE)] * number
    instances = [
        Instances(size, gt_boxes=Boxes(torch.from_numpy(b)), gt_classes=torch.from_numpy(c))
        for size, b, c in zip(sizes, boxes, classes, strict=True)
    ]
    maps = {"p2": p2, "p3": F.avg_pool2d(p2, 2)}
    return ImageList(tensor, sizes), maps, BatchedTargets.from_instances(instances, CPU)


def stack_boxes(proposals: list[Instances]) -> torch.Tensor:
    return torch.stack([x.proposal_boxes.tensor for x in proposals])


def recall_after_learning(generator: nn.Module) -> float:
    """The share of new scenes' objects that an initial box meets with an IoU of 0.5, after 300 steps."""
    criterion = start_criterion(1.0, l1_weight=5.0, giou_weight=2.0)
    assert criterion is not None
    optimizer = torch.optim.AdamW(generator.parameters(), 1e-2)
    images, maps, targets = scenes(12, seed=1)
    for _ in range(300):
        boxes = stack_boxes(generator(images, maps)[0])
        losses = criterion(StagePredictions(boxes.new_zeros(1, *boxes.shape[:2], 0), boxes[None]), targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    images, maps, targets = scenes(30, seed=2)
    with torch.no_grad():
        boxes = stack_boxes(generator.eval()(images, maps)[0])
    best = [box_iou(wanted, own).amax(1) for wanted, own in zip(targets.boxes, boxes, strict=True)]
    return (torch.stack(best) >= 0.5).float().mean().item()


def test_the_router_tells_kinds_of_scene_apart_which_static_proposals_cannot():
    """The positive control: 18 places of objects, six for each kind of scene, and six proposals."""
    static = LearnedProposalGenerator(num_proposals=6, channels=8)
    dynamic = DynamicProposalGenerator(
        num_proposals=6,
        channels=8,
        init_boxes="image",
        num_experts=4,
        expert_init=0.5,
        levels=feature_levels(["p2", "p3"], [4, 8], 8),
        hidden_channels=64,
        pool_size=12,
        temperature=TemperatureSchedule(1.0, 1.0, 0),
    )
    recalls = [recall_after_learning(generator) for generator in (static, dynamic)]
    assert recalls[0] <= 6 / 18 + 1e-6 < recalls[1] - 0.3
