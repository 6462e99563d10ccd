"""The length of a training in epochs or minutes, as options of its config."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from .from_yaml import build_parts, evaluation_dtype, prepare_config
from .parallel import usable_device
from .precision import autocast
from .small_data import LOWEST_SIDE, Choice, as_options, choose_settings, count_images
from .step import StepTrainer
from .trainer import Trainer

logger = logging.getLogger(__name__)

# Evaluations of a training, the last one at its end, and the share of its time that they may take.
_MOST_EVALUATIONS, _EVALUATION_SHARE = 4, 0.2
# Of the time for iterations, for what was not measured: the start of the processes, checkpoints, other programs.
_RESERVE = 0.05
# Below this many, smaller images bring more than larger ones.
_WANTED_ITERATIONS = 500


@dataclass(frozen=True)
class Timing:
    """Seconds of an iteration, and of an image in an evaluation."""

    iteration: float
    image: float


def choose_training(
    read: Callable[[Sequence[str]], CfgNode],
    train: Sequence[str],
    val: Sequence[str],
    *,
    minutes: float | None = None,
    epochs: float | None = None,
    iterations: int | None = None,
    processes: int = 1,
) -> list[Choice]:
    """All settings of a training of which only the data and the length are known.

    Args:
        read: gives the config, with the options that it is called with.
        train: see :func:`choose_settings`.
        val: likewise.
        minutes: see :func:`choose_length`. Images become smaller where too few iterations fit.
        epochs: see :func:`choose_length`.
        iterations: see :func:`choose_length`.
        processes: see :func:`choose_length`.

    Raises:
        OSError, ValueError: see there.
    """
    start, device = time.perf_counter(), usable_device(read([]).MODEL.DEVICE)
    settings = choose_settings(train, val, device, processes=processes)
    if minutes is None:
        return [*settings, *choose_length(read(as_options(settings)), epochs=epochs, iterations=iterations)]

    def fitting(settings: list[Choice]) -> list[Choice]:
        cfg = read(as_options(settings))
        return choose_length(cfg, minutes=minutes, processes=processes, start=start)

    schedule = fitting(settings)
    values = {choice.key: choice.value for choice in (*settings, *schedule)}
    side, iterations = values["INPUT.MIN_SIZE_TEST"], values["SOLVER.MAX_ITER"]
    # The time of an iteration grows about as the area of the images.
    smaller = max(LOWEST_SIDE, 32 * int(side * math.sqrt(iterations / _WANTED_ITERATIONS) / 32))
    if smaller < side:
        logger.info(
            f"With images of {side} pixels {minutes:g} minutes are only {iterations} iterations: trying {smaller}"
        )
        settings = choose_settings(train, val, device, smaller, processes)
        schedule = fitting(settings)
    return [*settings, *schedule]


def choose_length(
    cfg: CfgNode,
    *,
    minutes: float | None = None,
    epochs: float | None = None,
    iterations: int | None = None,
    processes: int = 1,
    start: float | None = None,
) -> list[Choice]:
    """The number of iterations, and all that depends on it.

    Args:
        cfg: as it was read; it is not changed.
        minutes: that the training may take, with its evaluations; some iterations are timed.
        epochs: how often each image is learned, if no time is given.
        iterations: their number, if neither is given.
        processes: that share a batch.
        start: of the minutes, in seconds of ``time.perf_counter``; None: now.

    Raises:
        OSError, ValueError: the config or its data cannot be used.
    """
    start = time.perf_counter() if start is None else start
    with _quiet():  # the run will say all of it
        cfg = cfg.clone()
        cfg.SOLVER.PATIENCE = 0  # it counts evaluations, which are not planned yet
        prepare_config(cfg, is_train=True)
        batch, rate = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR
        if iterations is not None:
            return choose_schedule(iterations, _MOST_EVALUATIONS, batch, rate, "as given")
        images, tested = (count_images(names) for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
        timing = measure(cfg, processes) if minutes is not None else None
        torch.cuda.empty_cache()  # this process may stay while others train
    if timing is None or minutes is None:
        iterations = math.ceil((epochs or 0) * images / batch)
        return choose_schedule(iterations, _MOST_EVALUATIONS, batch, rate, f"{epochs or 0:g} epochs of {images} images")
    evaluation, seconds = tested * timing.image, 60 * minutes - (time.perf_counter() - start)
    affordable = int(_EVALUATION_SHARE * seconds / evaluation) if evaluation else _MOST_EVALUATIONS
    evaluations = min(max(1, affordable), _MOST_EVALUATIONS)
    iterations = int((1 - _RESERVE) * (seconds - evaluations * evaluation) / timing.iteration)
    reason = (
        f"{minutes:g} minutes; an iteration takes {timing.iteration:.2f} s, an evaluation of {tested} images "
        f"{evaluation:.0f} s"
    )
    return choose_schedule(iterations, evaluations, batch, rate, reason)


def choose_schedule(iterations: int, evaluations: int, batch: int, learning_rate: float, reason: str) -> list[Choice]:
    """The length of a training and what depends on it.

    Args:
        iterations: of the training, at least 1.
        evaluations: at equal distances, the last one at the end.
        batch: images of an iteration, which ``learning_rate`` is for.
        learning_rate: ``SOLVER.BASE_LR``.
        reason: of the length.
    """
    iterations = max(1, iterations)
    part, period = "a part of the length", math.ceil(iterations / evaluations)
    return [
        Choice("SOLVER.MAX_ITER", iterations, reason),
        Choice("SOLVER.STEPS", (int(0.8 * iterations),) if iterations > 1 else (), part),
        Choice("SOLVER.WARMUP_ITERS", min(50, max(1, iterations // 10)), part),
        Choice("TEST.EVAL_PERIOD", period, f"{evaluations} evaluations"),
        Choice("SOLVER.CHECKPOINT_PERIOD", period, "as the evaluations"),
        Choice("SOLVER.REFERENCE_BATCH_SIZE", batch, "the schedule is for this batch"),
        Choice("SOLVER.BASE_LR", learning_rate, "likewise"),
    ]


def measure(cfg: CfgNode, processes: int = 1, *, warm_up: int = 3, repeats: int = 8) -> Timing:
    """Trains and evaluates for a few seconds; the model is thrown away.

    Args:
        cfg: prepared for a training.
        processes: that share a batch. GPUs run their parts at once; CPU processes share the cores, and take as long as
            one with the whole batch.
        warm_up: number of iterations, and of images, before those that count.
        repeats: number of iterations, and of images, whose median counts.
    """
    cfg = cfg.clone()
    if cfg.MODEL.DEVICE.startswith("cuda"):
        cfg.SOLVER.IMS_PER_BATCH //= processes
    parts = build_parts(cfg, Trainer)
    settings, model = parts.settings, parts.model
    steps, dtype = settings.accumulate_steps, settings.dtype
    trainer = StepTrainer(model.train(), parts.train_loader, parts.optimizer, steps=steps, dtype=dtype)
    with EventStorage():
        iteration = _median_seconds(trainer.run_step, warm_up, repeats)
    if not cfg.DATASETS.TEST:
        return Timing(iteration, 0.0)
    batches = itertools.cycle(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    model.eval()
    with torch.no_grad(), autocast(evaluation_dtype(cfg), cfg.MODEL.DEVICE):
        image = _median_seconds(lambda: model(next(batches)), warm_up, repeats)
    return Timing(iteration, image)


def _median_seconds(run: Callable[[], object], warm_up: int, repeats: int) -> float:
    seconds = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm_up:])


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing but errors is logged."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
