"""What an evaluation tells of the proposals that the cascade starts from."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.records import Record

logger = logging.getLogger(__name__)

_RECALL_IOU = 0.5


class ProposalEvaluator(DatasetEvaluator):
    """Evaluates what a proposal generator gives during inference, as the task ``proposals``.

    - ``recall50``: percentage of the ground truths (crowds not counted) that an initial proposal has an IoU of 0.5
      with; NaN where there are none.
    - ``weight_entropy`` (with experts): of the weights of a proposal's experts, in nats, on average; from 0, one
      expert alone, to log E, all alike.
    - ``weight_variance`` (with experts): of a weight over the images, on average; 0: all images get the same proposals.
    """

    def __init__(self, proposal_generator: nn.Module) -> None:
        """
        Args:
            proposal_generator: the evaluated model's, of detectron2's contract.
        """
        self._generator = proposal_generator

    def reset(self) -> None:
        """Forgets all images, and hooks into the generator."""
        self._found: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._proposals: Sequence[Instances] = ()
        self._hook = self._generator.register_forward_hook(self._keep)

    def process(self, inputs: list[Record], outputs: object) -> None:
        """Takes the images' proposals into account; the detections are not looked at.

        Args:
            inputs: of the model; ``instances``, where the mapper gives them, are the ground truths.
            outputs: of the model.
        """
        for given, proposals in zip(inputs, self._proposals, strict=True):
            if "instances" in given:
                self._found.append(_find(given["instances"], proposals))
            if proposals.has("expert_weights"):
                self._weights.append(proposals.expert_weights.detach().cpu())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metrics of all processes' images in the main process, None in the others."""
        self._hook.remove()
        gathered = comm.gather((self._found, self._weights))
        if not comm.is_main_process():
            return None
        found = torch.cat([torch.zeros(0), *(x for own, _ in gathered for x in own)])
        metrics = {"recall50": 100 * found.mean().item()}
        if weights := [x.double() for _, own in gathered for x in own]:
            every = torch.stack(weights)
            metrics["weight_entropy"] = torch.special.entr(every).sum(-1).mean().item()
            metrics["weight_variance"] = every.var(0, unbiased=False).mean().item()
        logger.info("Initial proposals: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        return {"proposals": metrics}

    def _keep(self, generator: nn.Module, arguments: object, result: tuple[list[Instances], object]) -> None:
        self._proposals = result[0]


def _find(truths: Instances, proposals: Instances) -> Tensor:
    """(G,) float32, 1 for the ground truths, crowds left out, that a proposal overlaps enough."""
    if truths.has("gt_is_crowd"):
        truths = truths[~truths.gt_is_crowd]
    ious = pairwise_iou(truths.gt_boxes, Boxes(proposals.proposal_boxes.tensor.detach().cpu()))
    return (ious >= _RECALL_IOU).any(1).float()
