"""Gradient accumulation: a batch that does not fit into memory, learned in parts as if at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..modeling.losses.criterion import SetCriterion
from ..modeling.losses.normalizer import average_over_ranks


class AccumulatingTrainer(SimpleTrainer):
    """One step of the optimiser an iteration, from gradients of the iteration's batch in parts.

    The sums of the losses are divided by what the whole batch, over all ranks, contains, and its images are padded to
    the size of its largest; so that, layers with batch statistics and random numbers aside, gradients and losses are
    those of the batch at once. Where predictions decide what it contains (the positives of one-to-many matching),
    all parts are first run without gradients, one forward pass more. Ranks exchange gradients once, in the last part.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        autocast_dtype: torch.dtype | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """
        Args:
            model: a detector with a ``criterion``, perhaps distributed.
            data_loader: gives batches of ``steps`` images or more.
            optimizer: gets one step an iteration.
            steps: number of parts.
            autocast_dtype: of mixed precision; None: without it.
            grad_scaler: for float16.

        Raises:
            ValueError: if the model has no :class:`SetCriterion`, which knows how to divide its losses.
        """
        super().__init__(model, data_loader, optimizer)
        detector: Any = model.module if isinstance(model, DistributedDataParallel) else model
        if not isinstance(getattr(detector, "criterion", None), SetCriterion):
            raise ValueError(
                f"SOLVER.ACCUMULATE_STEPS is {steps}, which needs a model with a SetCriterion (or a subclass) as its "
                f"'criterion'; {type(detector).__name__} has none. Set it to 1."
            )
        self.detector = detector
        self.steps = steps
        self.autocast_dtype = autocast_dtype
        self.grad_scaler = grad_scaler

    def run_step(self) -> None:
        """Learns one batch."""
        start = time.perf_counter()
        parts = split_batch(next(self._data_loader_iter), self.steps)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        size = _largest_size(parts)
        losses = self._learn_all(parts, divisor=self._divisor(parts, size), pad_to=size)
        self._write_metrics(losses, data_time)
        self._step()

    def _learn_all(self, parts: Sequence[list[dict[str, Any]]], **options: Any) -> dict[str, Tensor]:
        """The losses of all parts together, their gradients added up."""
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

    def _learn(self, part: list[dict[str, Any]], **options: Any) -> dict[str, Tensor]:
        with self._autocast():
            losses: dict[str, Tensor] = self.model(part, **options)
            total = torch.stack(list(losses.values())).sum()
        (self.grad_scaler.scale(total) if self.grad_scaler else total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _step(self) -> None:
        if self.grad_scaler:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()

    @torch.no_grad()
    def _divisor(self, parts: Sequence[list[dict[str, Any]]], pad_to: tuple[int, int]) -> Tensor:
        """(1,) or (S,) what the losses of all parts are divided by."""
        device = self.detector.device
        counts = []
        with (
            _own_storage(),
            frozen_batch_statistics(self.detector),
            # The same random numbers, of dropout say, as when the parts are learned.
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            for part in parts:
                with self._autocast():  # one a part: casts made here carry no gradient
                    counts.append(self.detector.count(part, pad_to=pad_to))
        return average_over_ranks(torch.stack(counts).sum(0))

    def _autocast(self) -> AbstractContextManager:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.detector.device.type, dtype=self.autocast_dtype)

    def state_dict(self) -> dict[str, Any]:
        """As ``SimpleTrainer``, and of the scaler."""
        state: dict[str, Any] = super().state_dict()
        return state | ({"grad_scaler": self.grad_scaler.state_dict()} if self.grad_scaler else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        if self.grad_scaler and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def split_batch(batch: list[dict[str, Any]], parts: int) -> list[list[dict[str, Any]]]:
    """As many parts, in order, their sizes equal or 1 apart.

    Raises:
        ValueError: if there are fewer images than parts.
    """
    check_parts(len(batch), parts)
    bounds = [len(batch) * number // parts for number in range(parts + 1)]
    return [batch[start:end] for start, end in itertools.pairwise(bounds)]


def check_parts(images: int, parts: int) -> None:
    """Raises ValueError unless the images of a process can be run in that many parts."""
    if not 1 <= parts <= images:
        raise ValueError(
            f"SOLVER.ACCUMULATE_STEPS is {parts}, but the batch of a process has {images} images "
            "(SOLVER.IMS_PER_BATCH divided by the processes): use 1 to that many steps, or a larger batch."
        )


def _largest_size(parts: Sequence[list[dict[str, Any]]]) -> tuple[int, int]:
    heights, widths = zip(*(one["image"].shape[-2:] for part in parts for one in part), strict=True)
    return max(heights), max(widths)


@contextmanager
def frozen_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Layers with batch statistics use those of the batch, as in training, but do not remember them."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    batches = [layer.num_batches_tracked for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
        layer.num_batches_tracked = None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()
    try:
        yield
    finally:
        for layer, momentum, tracked in zip(layers, momenta, batches, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, tracked


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
