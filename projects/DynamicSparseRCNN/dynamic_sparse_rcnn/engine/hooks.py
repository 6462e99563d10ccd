"""Hooks of a training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..checkpoints.runs import BEST, FINAL, keep_best_detections
from ..data.seeding import derive_seed

logger = logging.getLogger(__name__)

#: Metrics of an evaluation: by task and name; of several test sets, by the sets' names first.
Results = dict[str, Any]
#: What a checkpoint keeps of a part of a run.
State = dict[str, Any]
#: The task of losses among the results of an evaluation; of its metrics, less is better.
LOSS_TASK = "validation"


class IterationSeed(HookBase):
    """What an iteration draws (dropout, stochastic depth) follows from the seed, the iteration and the rank alone.

    A resumed run then draws what it would have drawn without the interruption.
    """

    def __init__(self, seed: int) -> None:
        """Args: seed, not negative, the same on all ranks."""
        self._seed = seed

    def before_step(self) -> None:
        """Seeds PyTorch's generators of all devices."""
        torch.manual_seed(derive_seed(self._seed, self.trainer.iter, comm.get_rank()))


class WeightAverage(HookBase):
    """Exponential moving average of a model's parameters and batch statistics.

    ``averaged`` is the model that is evaluated and saved, and whose weights a training starts from; what the
    optimizer changes is this hook's state in a checkpoint. The decay of iteration t (from 0) is
    ``min(decay, (1 + t) / (10 + t))``, so that early weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, averaged: nn.Module, decay: float) -> None:
        """
        Args:
            model: is trained; not distributed.
            averaged: a copy of it, on the same device.
            decay: share of the average that an iteration keeps, from 0 to 1.
        """
        self._model, self._averaged, self._decay = model, averaged, decay
        self._is_resumed = False

    def before_train(self) -> None:
        """A new training starts from the weights that were loaded."""
        if not self._is_resumed:
            self._model.load_state_dict(self._averaged.state_dict())

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the average towards the current weights."""
        decay = min(self._decay, (1 + self.trainer.iter) / (10 + self.trainer.iter))
        floats: tuple[list, list] = ([], [])
        for old, new in zip(_tensors(self._averaged), _tensors(self._model), strict=True):
            if old.is_floating_point():
                floats[0].append(old)
                floats[1].append(new)
            else:
                old.copy_(new)
        get_ema_multi_avg_fn(decay)(*floats, 0)

    def state_dict(self) -> State:
        """The weights that are trained."""
        return {"model": self._model.state_dict()}

    def load_state_dict(self, state_dict: State) -> None:
        """The reverse of :meth:`state_dict`."""
        self._model.load_state_dict(state_dict["model"])
        self._is_resumed = True


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*(parameter.detach() for parameter in model.parameters()), *model.buffers()]


class StopTraining(BaseException):
    """Ends a training before its last iteration. Not an ``Exception``, which detectron2 would log as an error."""


@dataclass
class Progress:
    """What is known of the metric by which checkpoints are compared.

    Attributes:
        best: its best value; None before the first.
        best_iteration: number of iterations after which it had that value.
        evaluated: number of iterations after which it was evaluated last.
        without_gain: number of evaluations since the best one.
    """

    best: float | None = None
    best_iteration: int = 0
    evaluated: int = 0
    without_gain: int = 0

    def add(self, value: float, iteration: int, less_is_better: bool) -> bool:
        """Takes an evaluation after ``iteration`` iterations into account; says whether it is the best."""
        sign = -1 if less_is_better else 1
        gains = not math.isnan(value) and (self.best is None or sign * value > sign * self.best)
        if gains:
            self.best, self.best_iteration = value, iteration
        self.evaluated = iteration
        self.without_gain = 0 if gains else self.without_gain + 1
        return gains


class Evaluation(hooks.EvalHook):
    """Evaluates periodically and after the last iteration, keeps the best checkpoint, and may stop the training.

    As detectron2's hook, but for the evaluation after an error in the last iteration: other processes would not take
    part in it, and the one with the error would wait for them. A training that was interrupted between the checkpoint
    and the evaluation of an iteration is evaluated when it is resumed.
    """

    def __init__(self, period: int, evaluate: Callable[[], Results], metric: str = "", patience: int = 0) -> None:
        """
        Args:
            period: number of iterations from one evaluation to the next; 0: after the last alone.
            evaluate: gives the results in the main process; all processes call it.
            metric: decides which checkpoint is the best, such as ``bbox/AP``; empty: none is kept.
            patience: number of evaluations without gain after which the training stops; 0: it never does.
        """
        super().__init__(period, self._evaluate)
        self._run_evaluation = evaluate
        self._metric, self._patience = metric, patience
        self._is_loss = metric.split("/")[-2:-1] == [LOSS_TASK]  # what precedes it is a data set's name
        self.progress = Progress()

    def before_train(self) -> None:
        """Evaluates a checkpoint that is resumed, if its evaluation is missing."""
        start = self.trainer.start_iter
        if start == 0:
            return
        self.trainer.iter = self.trainer.storage.iter = start - 1
        is_due = self._period > 0 and start % self._period == 0 and start < self.trainer.max_iter
        if self._metric and is_due and self.progress.evaluated != start:
            self._do_eval()
        self._stop_if_exhausted()
        self.trainer.iter = self.trainer.storage.iter = start

    def after_step(self) -> None:
        """Evaluates if it is time to."""
        super().after_step()
        self._stop_if_exhausted()

    def after_train(self) -> None:
        """Evaluates once the training is done."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()
        if self.progress.best is not None:
            logger.info(
                f"Best {self._metric}: {self.progress.best:.4f} after {self.progress.best_iteration} iterations, "
                f"saved as {BEST}"
            )

    def _evaluate(self) -> Results:
        results = self._run_evaluation()
        if self._metric and comm.all_gather(bool(results))[0]:
            self._keep_best(results)
        return results

    def _keep_best(self, results: Results) -> None:
        """All processes know the progress, so that they stop together; the main one saves."""
        value = find_metric(results, self._metric) if comm.is_main_process() else 0.0
        value = comm.all_gather(value)[0]
        iteration = min(self.trainer.storage.iter + 1, self.trainer.max_iter)
        if self.progress.add(value, iteration, self._is_loss):
            logger.info(f"{self._metric} {value:.4f} after {iteration} iterations is the best so far")
            if comm.is_main_process():
                extras = {"iteration": iteration - 1, "metric": {"name": self._metric, "value": value}}
                self.trainer.checkpointer.save_weights(Path(BEST).stem, **extras)
                keep_best_detections(self.trainer.checkpointer.save_dir)

    def _stop_if_exhausted(self) -> None:
        if not self._patience or self.progress.without_gain < self._patience:
            return
        iteration = self.trainer.iter
        logger.info(
            f"Stopping after {iteration + 1} iterations: {self.progress.without_gain} evaluations without a gain in "
            f"{self._metric}. To train for longer, raise SOLVER.PATIENCE (of a lazy config train.patience) and resume."
        )
        if comm.is_main_process():
            self.trainer.checkpointer.save(Path(FINAL).stem, iteration=iteration)
        raise StopTraining

    def state_dict(self) -> State:
        """The progress, and the metric that it is of."""
        return {"metric": self._metric, **asdict(self.progress)} if self._metric else {}

    def load_state_dict(self, state_dict: State) -> None:
        """The reverse of :meth:`state_dict`. Values of another metric are not comparable, and are dropped."""
        state = dict(state_dict)
        if state.pop("metric", self._metric) == self._metric:
            self.progress = Progress(**state)


def find_metric(results: Results, name: str) -> float:
    """A metric such as ``bbox/AP``, of several test sets the mean.

    Args:
        results: of an evaluation: metrics by task, or tasks by test set.
        name: task and metric; or test set, task and metric.

    Raises:
        ValueError: there is no such metric; names those that there are.
    """
    metrics = flatten_results_dict(results)
    found = [float(value) for key, value in metrics.items() if key == name or key.endswith(f"/{name}")]
    if not found:
        raise ValueError(f"TEST.BEST_METRIC is {name!r}, which the evaluation does not give; it gives {list(metrics)}")
    return sum(found) / len(found)
