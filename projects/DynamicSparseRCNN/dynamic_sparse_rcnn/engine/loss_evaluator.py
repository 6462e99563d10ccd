"""The losses of an evaluation, which show overfitting beside those of the training."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..data.records import Record
from ..modeling.structures import BatchedTargets, StagePredictions
from .hooks import LOSS_TASK


class LossEvaluator(DatasetEvaluator):
    """Evaluates the criterion on what the head gives during inference, as the task ``validation``.

    The metrics are the weighted losses by the names that they have in training, and ``total_loss``; all sums are
    divided by what the whole data set contains, however it is shared by batches and processes.
    """

    def __init__(self, detector: nn.Module) -> None:
        """
        Args:
            detector: with ``head`` and ``criterion``, as :class:`.SparseRCNN`; not distributed.

        Raises:
            ValueError: the model has no such parts.
        """
        if not hasattr(getattr(detector, "criterion", None), "count") or not hasattr(detector, "head"):
            raise ValueError(
                "TEST.LOSS (of a lazy config train.test_loss) needs a model with a head and a criterion that counts, "
                f"as SparseRCNN has; {type(detector).__name__} has none. Set it to False."
            )
        self._detector: Any = detector
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def reset(self) -> None:
        """Starts anew, and to look at what the head gives."""
        self._stop()
        self._sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        self._count: Tensor = torch.zeros(1, dtype=torch.float64)
        self._hook = self._detector.head.register_forward_hook(self._keep)

    def process(self, inputs: list[Record], outputs: object) -> None:
        """Adds the losses of some images; the detections are not looked at.

        Raises:
            ValueError: an image has no ``instances``, which the mapper of the data set has to give.
        """
        if not all("instances" in one for one in inputs):
            raise ValueError(
                "TEST.LOSS (of a lazy config train.test_loss) needs images with annotations, and a mapper that keeps "
                "them, as DetectionMapper does. Set it to False."
            )
        instances = [one["instances"] for one in inputs]
        targets = BatchedTargets.from_instances(instances, self._predictions.boxes.device)
        one = torch.ones(1, device=self._predictions.boxes.device)
        with EventStorage():  # what criteria log is not of the training
            losses = self._detector.criterion(self._predictions, targets, divisor=one)
            self._count = self._count + self._detector.criterion.count(self._predictions, targets).double().cpu()
        for name, loss in losses.items():
            self._sums[name] = self._sums[name] + loss.double().cpu()

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The losses of all processes' images in the main process, None in the others."""
        self._stop()
        gathered = comm.gather((dict(self._sums), self._count))
        if not comm.is_main_process():
            return None
        count = sum(count for _, count in gathered).clamp(min=1)
        losses = {
            name: (sum(sums[name] for sums, _ in gathered if sums) / count[_stage_of(name, len(count))]).item()
            for name in self._sums
        }
        return {LOSS_TASK: {"total_loss": sum(losses.values()), **losses}}

    def _keep(self, head: nn.Module, arguments: object, predictions: StagePredictions) -> None:
        self._predictions = predictions

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _stage_of(name: str, stages: int) -> int:
    """The position of a loss's stage among the counts: losses of the last stage have no number."""
    number = re.search(r"_(\d+)$", name)
    return int(number[1]) if number and stages > 1 else stages - 1
