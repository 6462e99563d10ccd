"""What an evaluation tells of the proposals that the cascade starts from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.records import Record

logger = logging.getLogger(__name__)

_RECALL_IOU = 0.5


@dataclass
class _Sums:
    """What one process has seen: boxes and those of them found, images, and sums over the weights of each image."""

    boxes: int = 0
    found: int = 0
    images: int = 0
    entropy: float = 0.0
    weights: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add_boxes(self, truth: Boxes, proposals: Boxes) -> None:
        self.boxes += len(truth)
        if len(truth):
            self.found += int((pairwise_iou(truth, proposals).amax(1) >= _RECALL_IOU).sum())

    def add_weights(self, weights: Tensor) -> None:
        """(P, E) of one image."""
        weights = weights.double()
        self.images += 1
        self.entropy += torch.special.entr(weights).sum(1).mean().item()
        self.weights = self.weights + weights
        self.squares = self.squares + weights**2

    def add(self, other: _Sums) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def metrics(self) -> dict[str, float]:
        metrics = {"recall50": 100 * self.found / self.boxes if self.boxes else float("nan")}
        if self.images:
            metrics["weight_entropy"] = self.entropy / self.images
            variance = self.squares / self.images - (self.weights / self.images) ** 2
            metrics["weight_variance"] = variance.clamp(min=0).mean().item()
        return metrics


class ProposalEvaluator(DatasetEvaluator):
    """Evaluates what a proposal generator gives during inference, as the task ``proposals``.

    - ``recall50``: per cent of the ground truths (crowds not counted) that an initial proposal has an IoU of 0.5
      with; NaN where there are none.
    - ``weight_entropy`` (with experts): of the weights of a proposal's experts, in nats, on average; from 0, one
      expert alone, to log E, all alike.
    - ``weight_variance`` (with experts): of a weight over the images, on average; 0: all images get the same proposals.
    """

    def __init__(self, dataset_name: str, proposal_generator: nn.Module) -> None:
        """
        Args:
            dataset_name: a registered data set, whose annotations are the ground truths.
            proposal_generator: the evaluated model's, of detectron2's contract.
        """
        self._dataset_name = dataset_name
        self._generator = proposal_generator
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def reset(self) -> None:
        """Starts anew, and to look at what the generator gives."""
        self._stop()
        self._truths = {x["image_id"]: _ground_truths(x) for x in DatasetCatalog.get(self._dataset_name)}
        self._sums = _Sums()
        self._proposals: Sequence[Instances] = ()
        self._hook = self._generator.register_forward_hook(self._keep)

    def process(self, inputs: list[Record], outputs: object) -> None:
        """Takes the images' proposals into account; the detections are not looked at."""
        for given, proposals in zip(inputs, self._proposals, strict=True):
            height, width = proposals.image_size
            boxes = Boxes(proposals.proposal_boxes.tensor.detach().cpu().clone())
            boxes.scale(given["width"] / width, given["height"] / height)
            self._sums.add_boxes(self._truths[given["image_id"]], boxes)
            if proposals.has("expert_weights"):
                self._sums.add_weights(proposals.expert_weights.detach().cpu())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metrics of all processes' images in the main process, None in the others."""
        self._stop()
        gathered = comm.gather(self._sums)
        if not comm.is_main_process():
            return None
        total = _Sums()
        for sums in gathered:
            total.add(sums)
        metrics = total.metrics()
        logger.info("Initial proposals: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        return {"proposals": metrics}

    def _keep(self, generator: nn.Module, arguments: object, result: tuple[list[Instances], object]) -> None:
        self._proposals = result[0]

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _ground_truths(record: Record) -> Boxes:
    """Absolute XYXY boxes in pixels of the original image; those without extent, which nothing can find, left out."""
    boxes = [
        BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in record.get("annotations", ())
        if not annotation.get("iscrowd", 0)
    ]
    truths = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return truths[truths.nonempty()]
