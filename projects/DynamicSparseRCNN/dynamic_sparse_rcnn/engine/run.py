"""A training: its parts, whichever kind of config they come from, and the one loop that runs them."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..checkpoints.classes import DetectorClasses
from ..checkpoints.loading import Checkpointer
from ..checkpoints.runs import is_set_aside, set_earlier_run_aside
from ..data.loader import TrainLoader
from ..data.seeding import shared_seed
from ..errors import describe
from ..file_io import naming_the_file
from .hooks import Evaluation, IterationSeed, Results, State, StopTraining, WeightAverage
from .loggers import build_writers, check_loggers, forget_tracked_runs
from .parallel import distribute
from .solver import keeping_rates
from .step import StepTrainer

logger = logging.getLogger(__name__)

_LONGER = (
    "To train for longer, raise SOLVER.MAX_ITER (of a lazy config train.max_iter); for a new run from its weights, "
    "leave out --resume, name its last checkpoint as the weights and give another output folder."
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long a run trains, and what it does on the way.

    Attributes:
        output_dir: where it writes.
        weights: what a new run starts from; empty: no checkpoint.
        max_iter: number of iterations.
        seed: negative: one is drawn.
        checkpoint_period: number of iterations from one checkpoint to the next.
        max_to_keep: number of these checkpoints that are kept; None: all.
        eval_period: number of iterations from one evaluation to the next; 0: after the last alone.
        precise_bn_iters: number of batches whose statistics batch norms get before an evaluation; 0: they keep theirs.
        log_period: number of iterations from one line of the log to the next.
        accumulate_steps: number of parts that a batch is learned in.
        dtype: of mixed precision; None: single precision.
        ema_decay: of the moving average of the weights; None: there is none.
        best_metric: decides which checkpoint is the best; empty: none is kept.
        patience: number of evaluations without gain after which the training stops; 0: it never does.
        loggers: beside the log and ``metrics.json``, names of ``LOGGER_REGISTRY``.
        ddp: options of ``DistributedDataParallel``.
    """

    output_dir: str
    weights: str
    max_iter: int
    seed: int
    checkpoint_period: int
    max_to_keep: int | None = None
    eval_period: int = 0
    precise_bn_iters: int = 0
    log_period: int = 20
    accumulate_steps: int = 1
    dtype: torch.dtype | None = None
    ema_decay: float | None = None
    best_metric: str = ""
    patience: int = 0
    loggers: tuple[str, ...] = ("tensorboard",)
    ddp: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_iter < 1 or self.checkpoint_period < 1:
            raise ValueError(
                f"SOLVER.MAX_ITER (of a lazy config train.max_iter) is {self.max_iter}, SOLVER.CHECKPOINT_PERIOD "
                f"(train.checkpointer.period) {self.checkpoint_period}: a training needs at least 1 of either"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(
                f"SOLVER.EMA.DECAY (of a lazy config train.ema.decay) is {self.ema_decay}: use a number between 0 and 1"
            )
        if self.patience < 0 or (self.patience and not (self.best_metric and self.eval_period > 0)):
            raise ValueError(
                f"SOLVER.PATIENCE (of a lazy config train.patience) is {self.patience}: it counts evaluations without "
                "gain, so it needs TEST.BEST_METRIC (train.best_metric) and TEST.EVAL_PERIOD (train.eval_period)"
            )
        if "://" in self.output_dir:
            raise ValueError(
                f"OUTPUT_DIR (of a lazy config train.output_dir) is {self.output_dir}: runs are written to a folder of "
                "this machine; copy or mount the other one"
            )
        check_loggers(self.loggers)


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What a training is made of.

    Attributes:
        settings: see there.
        model: on its device, not distributed.
        optimizer: of its parameters.
        scheduler: of the optimizer's learning rates, one step an iteration.
        train_loader: gives batches without end.
        evaluate: evaluates a model; all processes call it, and the main one gets the results.
        classes: what the detector finds; saved with its weights.
        config: what trackers of experiments show.
        save_config: writes the config of the run; called by the main process when data and checkpoint have been read.
    """

    settings: RunSettings
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    train_loader: Any
    evaluate: Callable[[nn.Module], Results]
    classes: DetectorClasses | None
    config: Mapping[str, object]
    save_config: Callable[[], None]


class TrainingRun(DefaultTrainer):
    """The loop over the parts of a run.

    Attributes:
        evaluated_model: what is evaluated and saved: the average of the weights if there is one, else the model.
        last_results: of the last evaluation, metrics by task; empty before the first, and in all but the main process.
    """

    _trainer: StepTrainer
    iter: int

    def __init__(self, parts: RunParts) -> None:
        """All processes of a run call this."""
        # Not DefaultTrainer's own, which distributes over GPUs alone and makes all parts itself.
        TrainerBase.__init__(self)
        self.parts = parts
        settings, model = parts.settings, parts.model
        self._trainer = StepTrainer(
            distribute(model, **settings.ddp),
            parts.train_loader,
            parts.optimizer,
            steps=settings.accumulate_steps,
            dtype=settings.dtype,
        )
        # A copy of the weights that are the same on all ranks now.
        self.evaluated_model = model if settings.ema_decay is None else copy.deepcopy(model).requires_grad_(False)
        self.scheduler = parts.scheduler
        self.checkpointer = Checkpointer(
            self.evaluated_model, settings.output_dir, classes=parts.classes, trainer=weakref.proxy(self)
        )
        self.start_iter, self.max_iter = 0, settings.max_iter
        self.last_results: Results = {}
        with naming_the_file(settings.output_dir):  # loggers write at once
            self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks of a training, in the order in which they are called."""
        settings, model = self.parts.settings, self.parts.model
        on_main = comm.is_main_process()
        averages, has_precise_bn = settings.ema_decay is not None, settings.precise_bn_iters and get_bn_modules(model)
        return [
            IterationSeed(shared_seed(settings.seed)),
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=self.scheduler),
            WeightAverage(model, self.evaluated_model, settings.ema_decay or 0.0) if averages else None,
            hooks.PreciseBN(
                settings.eval_period, self.evaluated_model, self.parts.train_loader, settings.precise_bn_iters
            )
            if has_precise_bn
            else None,
            # Before the evaluation: if that fails, the weights are there.
            hooks.PeriodicCheckpointer(self.checkpointer, settings.checkpoint_period, max_to_keep=settings.max_to_keep)
            if on_main
            else None,
            Evaluation(settings.eval_period, self.evaluate, settings.best_metric, settings.patience),
            hooks.PeriodicWriter(self.build_writers(), period=settings.log_period) if on_main else None,
        ]

    def build_writers(self) -> list[EventWriter]:
        """What the main process logs to."""
        settings = self.parts.settings
        return build_writers(settings.output_dir, settings.max_iter, settings.loggers, self.parts.config)

    def evaluate(self) -> Results:
        """Evaluates the current weights; all processes call this."""
        # A distributed model, so that what wraps it sees it too.
        model = self.model if self.evaluated_model is self.parts.model else self.evaluated_model
        self.last_results = self.parts.evaluate(model)
        return self.last_results

    def resume_or_load(self, resume: bool = True) -> None:
        """Resumes the run of the output folder, or starts one from weights; the log says which.

        All processes call this. The main one writes the config.

        Raises:
            ValueError: no iteration is left, the run had another model, or a new run is to start from a checkpoint that
                it sets aside.
        """
        settings = self.parts.settings
        last = self.checkpointer.get_checkpoint_file()
        if not resume and settings.weights and is_set_aside(settings.weights, settings.output_dir):
            raise ValueError(
                f"{settings.weights} is of an earlier run in the output folder, which a new one sets aside: give "
                "another output folder, or resume that run with --resume"
            )
        _tell_start(settings, resume, last)
        self.checkpointer.resume_or_load(settings.weights, resume=resume)
        if resume and last:
            self.start_iter = self.iter + 1
        if self.start_iter > self.max_iter:
            raise ValueError(
                f"The run in {settings.output_dir} has done {self.start_iter} iterations, more than {self.max_iter}. "
                f"{_LONGER}"
            )
        if self.start_iter == self.max_iter:
            logger.info(f"All {self.max_iter} iterations are done: evaluating once more. {_LONGER}")
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.start_iter = self.start_iter
        if comm.is_main_process():
            if not resume:
                forget_tracked_runs(settings.output_dir)
                set_earlier_run_aside(settings.output_dir)
            self.parts.save_config()

    def train(self) -> Results:
        """Runs the training, and gives the results of the last evaluation (in the main process)."""
        with naming_the_file(self.parts.settings.output_dir), suppress(StopTraining):
            TrainerBase.train(self, self.start_iter, self.max_iter)
        if comm.is_main_process():
            _report(self.parts.settings.output_dir)
        return self.last_results

    def after_train(self) -> None:
        """As ``DefaultTrainer``; detectron2 counts one iteration too many if none was left."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def state_dict(self) -> State:
        """What a checkpoint keeps of the run: iteration, hooks, and optimizer, which detectron2 0.6 forgets."""
        return TrainerBase.state_dict(self) | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: State) -> None:
        """The reverse of :meth:`state_dict`. Learning rates and weight decays stay those of the config.

        Raises:
            ValueError: the run had an average of its weights, and has none now.
        """
        if self.parts.settings.ema_decay is None and WeightAverage.__qualname__ in state_dict.get("hooks", {}):
            raise ValueError(
                "The run has been trained with a moving average of its weights: resume it with SOLVER.EMA.ENABLED True "
                "(of a lazy config train.ema.enabled=True)"
            )
        with keeping_rates(self.parts.optimizer, self.scheduler):
            TrainerBase.load_state_dict(self, state_dict)  # DefaultTrainer's, on detectron2's main branch, does both
            self._trainer.load_state_dict(state_dict["_trainer"])


def _report(output_dir: str) -> None:
    """Writes ``report.html``. No training fails because of its report."""
    try:
        from ..report.writing import write_report  # with matplotlib, which a training does not need

        logger.info(f"Wrote {write_report(output_dir)}")
    except Exception as error:
        logger.warning(f"There is no report of this run: {describe(error)}. Retry with: dsrcnn report {output_dir}")


def _tell_start(settings: RunSettings, resume: bool, last_checkpoint: str) -> None:
    folder = settings.output_dir
    if resume and last_checkpoint:
        logger.info(f"Resuming the run in {folder} from {last_checkpoint}; MODEL.WEIGHTS is not read")
        return
    source = f"the weights of {settings.weights}" if settings.weights else "no checkpoint"
    if resume:
        logger.warning(f"--resume finds no checkpoint in {folder}: this run starts at iteration 0, from {source}")
        return
    logger.info(f"A new run starts at iteration 0, from {source}")
