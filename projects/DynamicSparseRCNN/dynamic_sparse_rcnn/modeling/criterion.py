"""The criterion: from the predictions of all stages and the ground truths to weighted losses."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from .costs import MatchCostModel, box_iou_and_giou
from .matcher import Matcher, build_matcher
from .structures import Assignment, BatchedTargets, StagePredictions

CRITERION_REGISTRY = Registry("CRITERION")
CRITERION_REGISTRY.__doc__ = """
Criteria, chosen by ``MODEL.SparseRCNN.CRITERION`` and built by ``CRITERION_REGISTRY.get(name)(cfg)``.
A criterion maps ``(StagePredictions, BatchedTargets)`` to a dict of weighted scalar losses.
"""


@CRITERION_REGISTRY.register()
class SetCriterion(nn.Module):
    """Set prediction loss of Sparse R-CNN (arXiv 2011.12450, section 3.3) over all stages at once.

    Focal loss on the classes of all proposals; L1 (in units of the image's size) and GIoU loss on the
    boxes of those that learn from a ground truth. All are sums, divided by the number of ground truths.
    """

    @configurable
    def __init__(
        self,
        *,
        cost_model: MatchCostModel,
        matcher: Matcher,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        focal_alpha: float,
        focal_gamma: float,
        deep_supervision: bool,
    ) -> None:
        """Args: as the keys of ``MODEL.SparseRCNN``; without ``deep_supervision`` only the last stage learns."""
        super().__init__()
        self.cost_model = cost_model
        self.matcher = matcher
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.deep_supervision = deep_supervision

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        node = cfg.MODEL.SparseRCNN
        return {
            "cost_model": MatchCostModel(cfg),
            "matcher": build_matcher(cfg),
            "class_weight": node.CLASS_WEIGHT,
            "l1_weight": node.L1_WEIGHT,
            "giou_weight": node.GIOU_WEIGHT,
            "focal_alpha": node.ALPHA,
            "focal_gamma": node.GAMMA,
            "deep_supervision": node.DEEP_SUPERVISION,
        }

    def forward(self, predictions: StagePredictions, targets: BatchedTargets) -> dict[str, Tensor]:
        """Gives ``loss_ce``, ``loss_bbox`` and ``loss_giou`` of the last stage, and with ``_0``, ``_1``, ...
        at the end of the name those of the stages before it; float32 scalars, already weighted.
        """
        supervised = predictions if self.deep_supervision else predictions.last
        assignment = self.matcher(self.cost_model(supervised, targets))
        with torch.autocast(supervised.boxes.device.type, enabled=False):
            normalizer = self._normalizer(assignment, targets)
            losses = {
                "loss_ce": self.class_weight * self._class_loss(supervised.logits, assignment, targets),
                **self._box_losses(supervised.boxes, assignment, targets),
            }
            return _name_by_stage({name: loss / normalizer for name, loss in losses.items()})

    def _normalizer(self, assignment: Assignment, targets: BatchedTargets) -> Tensor:
        """(S,) number of ground truths an average rank, at least 1."""
        number = targets.valid.sum().float().expand(assignment.gt_index.shape[0]).clone()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(number)
        return (number / comm.get_world_size()).clamp(min=1)

    def _class_loss(self, logits: Tensor, assignment: Assignment, targets: BatchedTargets) -> Tensor:
        """(S,) sum of the focal loss over images, proposals and classes."""
        classes = _gather_ground_truth(targets.classes, assignment)
        wanted = classes[..., None] == torch.arange(logits.shape[-1], device=logits.device)
        wanted &= assignment.positive[..., None]
        loss = sigmoid_focal_loss(logits.float(), wanted.float(), self.focal_alpha, self.focal_gamma)
        return loss.sum((1, 2, 3))

    def _box_losses(self, boxes: Tensor, assignment: Assignment, targets: BatchedTargets) -> dict[str, Tensor]:
        """(S,) sums of the L1 and of the GIoU loss over the proposals that learn from a ground truth."""
        wanted = _gather_ground_truth(targets.boxes, assignment)
        _, giou = box_iou_and_giou(boxes, wanted)
        distance = ((boxes - wanted) / targets.image_whwh[:, None]).abs().sum(-1)
        positive = assignment.positive
        return {
            "loss_bbox": self.l1_weight * (distance * positive).sum((1, 2)),
            "loss_giou": self.giou_weight * ((1 - giou) * positive).sum((1, 2)),
        }


def _gather_ground_truth(values: Tensor, assignment: Assignment) -> Tensor:
    """(B, G, ...) values of the ground truths to the (S, B, P, ...) of each proposal's own.

    Background proposals get those of ground truth 0: the caller masks them, which needs no host.
    """
    index = assignment.gt_index.clamp(min=0)
    image = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[image, index]


def _name_by_stage(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """(S,) losses to scalars with the names of the public Sparse R-CNN: the last stage has no number."""
    named: dict[str, Tensor] = {}
    for name, loss in losses.items():
        *earlier, last = loss.unbind()
        named[name] = last
        named.update({f"{name}_{stage}": value for stage, value in enumerate(earlier)})
    return named


def build_criterion(cfg: CfgNode) -> nn.Module:
    """Builds the criterion that ``MODEL.SparseRCNN.CRITERION`` names."""
    return CRITERION_REGISTRY.get(cfg.MODEL.SparseRCNN.CRITERION)(cfg)
