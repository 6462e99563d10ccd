"""The losses of an evaluation, which show overfitting beside those of the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..data.records import Record
from ..modeling.losses.criterion import LossSums
from ..modeling.structures import StagePredictions
from .hooks import LOSS_TASK


class LossEvaluator(DatasetEvaluator):
    """Evaluates the criterion on what the head gives during inference, as the task ``validation``.

    The metrics are the weighted losses by the names that they have in training, and ``total_loss``; all sums are
    divided by what the whole data set contains, however it is shared by batches and processes.
    """

    def __init__(self, detector: nn.Module) -> None:
        """
        Args:
            detector: with ``head``, ``criterion`` and ``targets_class``, as :class:`.SparseRCNN`; not distributed.

        Raises:
            ValueError: the model has no such parts.
        """
        has_sums = hasattr(getattr(detector, "criterion", None), "sums")
        if not (has_sums and hasattr(detector, "head") and hasattr(detector, "targets_class")):
            raise ValueError(
                "TEST.LOSS (of a lazy config train.test_loss) needs a model with a head, a criterion with sums and a "
                f"targets_class, as SparseRCNN has; {type(detector).__name__} lacks one of them. Set it to False."
            )
        self._detector: Any = detector

    def reset(self) -> None:
        """Forgets all images, and hooks into the head."""
        self._sums: list[LossSums] = []
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
        targets = self._detector.targets_class.from_instances(instances, self._predictions.boxes.device)
        sums = self._detector.criterion.sums(self._predictions, targets)
        losses = {name: loss.double().cpu() for name, loss in sums.of_stages.items()}
        of_start = {name: loss.double().cpu() for name, loss in sums.of_start.items()}
        self._sums.append(LossSums(losses, of_start, sums.count.double().cpu()))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The losses of all processes' images in the main process, None in the others."""
        self._hook.remove()
        gathered = [sums for own in comm.gather(self._sums) for sums in own]
        if not comm.is_main_process() or not gathered:
            return None
        total = _add(gathered)
        losses = {name: loss.item() for name, loss in total.divided(total.count.clamp(min=1)).items()}
        return {LOSS_TASK: {"total_loss": sum(losses.values()), **losses}}

    def _keep(self, head: nn.Module, arguments: object, predictions: StagePredictions) -> None:
        self._predictions = predictions


def _add(parts: Sequence[LossSums]) -> LossSums:
    """The sums of the parts of a data set."""
    return LossSums(
        {name: torch.stack([part.of_stages[name] for part in parts]).sum(0) for name in parts[0].of_stages},
        {name: torch.stack([part.of_start[name] for part in parts]).sum(0) for name in parts[0].of_start},
        torch.stack([part.count for part in parts]).sum(0),
    )
