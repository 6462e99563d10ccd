"""The step of a training: one batch, at once or in parts, in single or in mixed precision."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.records import Record
from ..modeling.losses.criterion import average_over_ranks
from .hooks import State
from .precision import autocast

Batch = list[Record]


class StepTrainer(SimpleTrainer):
    """``SimpleTrainer`` with mixed precision on any device, and with gradient accumulation.

    A batch in parts gives the losses and gradients of the batch at once, but for batch statistics and random numbers:
    all summed losses are divided by what the whole batch contains on all ranks, and all images are padded to the size
    of the largest. Where predictions decide what a batch contains (the positives of a one-to-many matcher), all parts
    are first run without gradients: one more forward pass. Ranks exchange gradients once, in the last part.

    detectron2's ``AMPTrainer`` is for CUDA alone, and in 0.6 for float16 alone.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        steps: int = 1,
        dtype: torch.dtype | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """
        Args:
            model: a detector, perhaps distributed.
            data_loader: gives batches, of ``steps`` images or more.
            optimizer: makes one step an iteration.
            steps: number of parts that a batch is learned in.
            dtype: of mixed precision; None: single precision.
            grad_scaler: by default float16 has one, and nothing else.

        Raises:
            ValueError: the batch is to be learned in parts, and the model cannot count what its losses are divided by.
        """
        super().__init__(model, data_loader, optimizer)
        detector: Any = model.module if isinstance(model, DistributedDataParallel) else model
        if steps > 1 and not hasattr(detector, "count"):
            raise ValueError(
                f"SOLVER.ACCUMULATE_STEPS is {steps}, which needs a model with a method 'count', as SparseRCNN has; "
                f"{type(detector).__name__} has none. Set it to 1 (of a lazy config train.accumulate_steps)."
            )
        self.detector = detector
        self.steps = steps
        self.dtype = dtype
        scales = dtype == torch.float16 and grad_scaler is None
        self.grad_scaler = torch.amp.GradScaler("cuda") if scales else grad_scaler

    def run_step(self) -> None:
        """Learns one batch."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self._learn(batch) if self.steps == 1 else self._learn_in_parts(split_batch(batch, self.steps))
        self._write_metrics(losses, data_time)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _learn(self, batch: Batch, **options: Any) -> dict[str, Tensor]:
        """Adds the gradients of a batch, or of a part of one."""
        with autocast(self.dtype, next(self.model.parameters()).device):
            losses: dict[str, Tensor] = self.model(batch, **options)
            total = torch.stack(list(losses.values())).sum()
        (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _learn_in_parts(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        size = _largest_size(parts)
        options = {"divisor": self._divisor(parts, size), "pad_to": size}
        losses: dict[str, Tensor] = {}
        storages = []
        for number, part in enumerate(parts, start=1):
            with ExitStack() as stack:
                storages.append(stack.enter_context(_own_storage()))
                if number < len(parts) and isinstance(self.model, DistributedDataParallel):
                    stack.enter_context(self.model.no_sync())
                for name, loss in self._learn(part, **options).items():
                    losses[name] = losses[name] + loss if name in losses else loss
        _put_means(storages)
        return losses

    @torch.no_grad()
    def _divisor(self, parts: Sequence[Batch], pad_to: tuple[int, int]) -> Tensor:
        """(1,), (S,) or (1 + S,) what the summed losses of all parts are divided by."""
        counts = []
        with _own_storage(), _unchanged(self.detector):
            for part in parts:
                with autocast(self.dtype, self.detector.device):  # one a part: casts made here carry no gradient
                    counts.append(self.detector.count(part, pad_to=pad_to))
        return average_over_ranks(torch.stack(counts).sum(0))

    def state_dict(self) -> State:
        """As ``SimpleTrainer``, with the gradient scaler's state."""
        state: State = super().state_dict()
        return state if self.grad_scaler is None else state | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: State) -> None:
        """The reverse of :meth:`state_dict`; a run that was in another precision until now has no scaler's state."""
        super().load_state_dict(state_dict)
        if self.grad_scaler is not None and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Splits a batch in order, into parts whose sizes are equal or differ by 1.

    Raises:
        ValueError: there are fewer images than parts.
    """
    check_parts(len(batch), parts)
    bounds = [len(batch) * number // parts for number in range(parts + 1)]
    return [batch[start:end] for start, end in itertools.pairwise(bounds)]


def check_parts(images: int, parts: int) -> None:
    """Raises ValueError unless the images of a process can be learned in that many parts."""
    if not 1 <= parts <= images:
        raise ValueError(
            f"SOLVER.ACCUMULATE_STEPS is {parts}, but the batch of a process has {images} image(s), its share of the "
            "whole one: use 1 to that many steps (of a lazy config train.accumulate_steps), or a larger batch"
        )


def _largest_size(parts: Sequence[Batch]) -> tuple[int, int]:
    heights, widths = zip(*(one["image"].shape[-2:] for part in parts for one in part), strict=True)
    return max(heights), max(widths)


@contextmanager
def _unchanged(detector: Any) -> Iterator[None]:
    """A forward pass within leaves neither statistics of its batch nor random numbers drawn behind."""
    before = [buffer.clone() for buffer in detector.buffers()]
    # The parts are then learned with the random numbers, of dropout say, that they were counted with.
    with torch.random.fork_rng([detector.device] if detector.device.type == "cuda" else []):
        yield
    for buffer, value in zip(detector.buffers(), before, strict=True):
        buffer.copy_(value)


def _own_storage() -> EventStorage:
    """A place of its own for what a part logs."""
    return EventStorage(get_event_storage().iter)


def _put_means(storages: Sequence[EventStorage]) -> None:
    """Logs the mean of each scalar that the parts logged."""
    values: dict[str, list[float]] = {}
    hints: dict[str, bool] = {}
    for storage in storages:
        hints |= storage.smoothing_hints()
        for name, (value, _) in storage.latest().items():
            values.setdefault(name, []).append(value)
    for name, own in values.items():
        get_event_storage().put_scalar(name, sum(own) / len(own), smoothing_hint=hints[name])
