"""What users add from outside, without changing the package: terms of cost and loss, and a mask branch."""

from __future__ import annotations

import copy

import pytest
import torch
import toy_masks
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from dynamic_sparse_rcnn import (
    COST_REGISTRY,
    LOSS_REGISTRY,
    BatchedTargets,
    CostTerm,
    LossTerm,
    MatchCostModel,
    Matched,
    Pairs,
    build_criterion,
)
from dynamic_sparse_rcnn.engine.loss_evaluator import LossEvaluator
from dynamic_sparse_rcnn.engine.solver import build_optimizer


def center_distance(boxes: Tensor, others: Tensor) -> Tensor:
    """Absolute XYXY boxes (..., 4) to the (...) pixels between their centers."""
    return (boxes.unflatten(-1, (2, 2)).mean(-2) - others.unflatten(-1, (2, 2)).mean(-2)).norm(dim=-1)


@COST_REGISTRY.register()
class MiddleCost(CostTerm):
    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(weight=0.1)

    def forward(self, pairs: Pairs) -> Tensor:
        return center_distance(pairs.predictions.boxes[:, :, :, None], pairs.targets.boxes[:, None])


@LOSS_REGISTRY.register()
class MiddleLoss(LossTerm):
    name = "loss_middle"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(weight=0.1)

    def forward(self, matched: Matched) -> Tensor:
        return (center_distance(matched.predictions.boxes, matched.boxes) * matched.positive).sum((1, 2))


def test_a_cost_of_others_is_added_to_the_matching_cost(tiny_cfg, make_instances, make_predictions):
    targets = BatchedTargets.from_instances([make_instances(3), make_instances(2)], torch.device("cpu"))
    predictions = make_predictions(2, [(64, 96)] * 2, 5)
    plain = MatchCostModel(tiny_cfg)(predictions, targets).cost
    tiny_cfg.merge_from_list(["MODEL.SparseRCNN.COSTS", "('ClassCost', 'L1Cost', 'GIoUCost', 'MiddleCost')"])
    cost = build_criterion(tiny_cfg).cost_model(predictions, targets).cost
    for s, b, p in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(5)).tolist():
        for g in range(int(targets.valid[b].sum())):
            x1, y1, x2, y2 = predictions.boxes[s, b, p].tolist()
            u1, v1, u2, v2 = targets.boxes[b, g].tolist()
            distance = (((x1 + x2 - u1 - u2) / 2) ** 2 + ((y1 + y2 - v1 - v2) / 2) ** 2) ** 0.5
            assert cost[s, b, p, g].item() == pytest.approx(plain[s, b, p, g].item() + 0.1 * distance, rel=1e-4)


def test_a_loss_of_others_is_weighted_divided_and_named_as_the_projects_own(tiny_cfg, make_instances, make_predictions):
    targets = BatchedTargets.from_instances([make_instances(3), make_instances(0)], torch.device("cpu"))
    predictions = make_predictions(2, [(64, 96)] * 2, 5, requires_grad=True)
    plain = build_criterion(tiny_cfg)(predictions, targets)
    tiny_cfg.merge_from_list(["MODEL.SparseRCNN.LOSSES", "('ClassLoss', 'L1Loss', 'GIoULoss', 'MiddleLoss')"])
    criterion = build_criterion(tiny_cfg)
    losses = criterion(predictions, targets)
    assert losses.keys() - plain.keys() == {"loss_middle", "loss_middle_0"}
    torch.testing.assert_close({name: losses[name] for name in plain}, plain)
    gt_index = criterion.matcher(criterion.cost_model(predictions, targets)).gt_index
    for stage, name in ((0, "loss_middle_0"), (1, "loss_middle")):
        pairs = [(p, g) for p, g in enumerate(gt_index[stage, 0].tolist()) if g >= 0]
        distances = [center_distance(predictions.boxes[stage, 0, p], targets.boxes[0, g]).item() for p, g in pairs]
        assert len(pairs) == 3
        assert losses[name].item() == pytest.approx(0.1 * sum(distances) / 3, rel=1e-4)
    losses["loss_middle_0"].backward()
    assert predictions.boxes.grad is not None and predictions.boxes.grad[0].any()


@pytest.mark.parametrize("key", ["COSTS", "LOSSES"])
def test_a_term_that_nobody_registered_is_refused_by_key_and_the_known_ones_are_listed(tiny_cfg, key):
    tiny_cfg.MODEL.SparseRCNN[key] = ["L1"]
    with pytest.raises(ValueError, match=rf"MODEL\.SparseRCNN\.{key} is 'L1': registered are .*L1"):
        build_criterion(tiny_cfg)


def test_two_losses_of_one_name_are_refused(tiny_cfg):
    tiny_cfg.MODEL.SparseRCNN.LOSSES = ["L1Loss", "GIoULoss", "L1Loss"]
    with pytest.raises(ValueError, match=r"MODEL\.SparseRCNN\.LOSSES .*'loss_bbox', 'loss_giou', 'loss_bbox'"):
        build_criterion(tiny_cfg)


@pytest.fixture
def mask_cfg(tiny_cfg: CfgNode) -> CfgNode:
    tiny_cfg.MODEL.META_ARCHITECTURE = "MaskSparseRCNN"
    tiny_cfg.MODEL.SparseRCNN.LOSSES = ["ClassLoss", "L1Loss", "GIoULoss", "MaskLoss"]
    return tiny_cfg


def with_masks(inputs: list[dict]) -> list[dict]:
    """Each ground truth's mask is the left half of its box."""
    for one in inputs:
        instances: Instances = one["instances"]
        masks = torch.zeros(len(instances), *instances.image_size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, instances.gt_boxes.tensor.round().long().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = True
        instances.gt_masks = BitMasks(masks)
    return inputs


def test_a_mask_branch_adds_its_loss_and_its_masks_and_changes_nothing_else(mask_cfg, make_inputs):
    inputs = with_masks(make_inputs([3, 1]))
    model = build_model(mask_cfg)
    assert isinstance(model.head, toy_masks.MaskHead)
    plain_cfg = copy.deepcopy(mask_cfg)
    plain_cfg.MODEL.META_ARCHITECTURE, plain_cfg.MODEL.SparseRCNN.LOSSES = (
        "SparseRCNN",
        ["ClassLoss", "L1Loss", "GIoULoss"],
    )
    plain = build_model(plain_cfg)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.masks.")})
    losses, expected = model(inputs), plain(inputs)
    assert losses.keys() - expected.keys() == {"loss_mask", "loss_mask_0"}
    torch.testing.assert_close({name: losses[name] for name in expected}, expected)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.head.masks.parameters())
    (found, _), (without, _) = model.eval()(inputs), plain.eval()(inputs)
    torch.testing.assert_close(found["instances"].scores, without["instances"].scores)
    assert found["instances"].pred_masks.shape == (len(found["instances"]), 64, 96)  # pasted by detectron2


def test_an_evaluation_has_the_losses_of_the_detectors_own_targets(mask_cfg, make_inputs):
    inputs = with_masks(make_inputs([3, 1]))
    model = build_model(mask_cfg).eval()
    targets = toy_masks.MaskTargets.from_instances([one["instances"] for one in inputs], model.device)
    with torch.no_grad():
        losses = model.criterion(model.predict(model.preprocess_image(inputs)), targets)
    expected = {name: loss.item() for name, loss in losses.items()}
    found = inference_on_dataset(model, [inputs], LossEvaluator(model))["validation"]
    assert found["loss_mask"] > 0
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_each_detection_has_the_mask_of_its_proposal_at_the_last_stage(mask_cfg, make_inputs):
    model = build_model(mask_cfg).eval()
    inputs = with_masks(make_inputs([3, 1]))
    with torch.no_grad():
        predictions = model.predict(model.preprocess_image(inputs))
        detections = model(inputs, do_postprocess=False)
    for image, found in enumerate(detections):
        scores = predictions.logits[-1, image].sigmoid()
        for score, label, mask in zip(found.scores, found.pred_classes, found.pred_masks, strict=True):
            proposal = int((scores[:, label] - score).abs().argmin())
            torch.testing.assert_close(mask[0], predictions.masks[-1, image, proposal].sigmoid())


@pytest.mark.slow
def test_masks_are_learned(mask_cfg, make_inputs):
    mask_cfg.SOLVER.BASE_LR = 1e-3
    model = build_model(mask_cfg)
    inputs = with_masks(make_inputs([3]))
    optimizer = build_optimizer(mask_cfg, model)
    for _ in range(100):
        optimizer.zero_grad()
        losses = model(inputs)
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["loss_mask"] < 0.35  # that of a guess is 0.69
