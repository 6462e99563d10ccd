"""Trainings of a model of a few numbers, in milliseconds, with evaluations that are written beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from dynamic_sparse_rcnn.engine.run import RunParts, RunSettings, TrainingRun


class Line(nn.Module):
    """Learns a line; has statistics of batches, and logs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.linear = nn.Linear(1, 1)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(self.norm(batch)) - 3 * batch).square().mean()}


def make_training(
    folder: Path,
    *,
    scores: Mapping[int, float] | None = None,
    evaluated: list[tuple[int, dict[str, torch.Tensor]]] | None = None,
    **settings: Any,
) -> TrainingRun:
    """A training of :class:`Line`.

    Args:
        folder: its output.
        scores: ``bbox/AP`` by number of iterations; empty: no evaluation has results.
        evaluated: gets the number of iterations and the weights of each evaluation.
        settings: of the run, where they differ from six iterations with a checkpoint each.
    """
    torch.manual_seed(0)
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    training: TrainingRun

    def evaluate(model: nn.Module) -> dict[str, Any]:
        iterations = min(training.storage.iter + 1, training.max_iter)
        if evaluated is not None:
            evaluated.append((iterations, {name: x.clone() for name, x in model.state_dict().items()}))
        return {"bbox": {"AP": scores[iterations]}} if scores and comm.is_main_process() else {}

    defaults: dict[str, Any] = {"weights": "", "max_iter": 6, "seed": 0, "checkpoint_period": 1, "loggers": ()}
    parts = RunParts(
        settings=RunSettings(output_dir=str(folder), **(defaults | settings)),
        model=model,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        train_loader=Batches(),
        evaluate=evaluate,
        classes=None,
        config={"a": {"key": 1}},
        save_config=lambda: None,
    )
    training = TrainingRun(parts)
    return training


class Batches:
    """Other numbers in each iteration; a resumed training begins anew, which :func:`train` makes up for."""

    def __init__(self) -> None:
        self.start = 0

    def __iter__(self) -> Any:
        for number in itertools.count():
            yield torch.randn(4, 1, generator=torch.Generator().manual_seed(self.start + number))


def train(training: TrainingRun, resume: bool = False, after_step: Callable[[TrainingRun], None] | None = None) -> None:
    """Runs a training to its end."""
    from detectron2.engine.hooks import CallbackHook

    training.resume_or_load(resume)
    training.data_loader.start = training.start_iter
    if after_step is not None:
        training.register_hooks([CallbackHook(after_step=after_step)])
    training.train()
