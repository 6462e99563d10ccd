"""The parts of a run, from a lazy config, with the fields that detectron2's own have and those of ``_DEFAULTS``.

``dataloader.test`` and ``dataloader.evaluator`` may be lists, of one element a test set. Where they are empty, or
``dataloader.test.dataset.name`` is null, nothing is evaluated.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from ..checkpoints.classes import DetectorClasses
from ..config_reading import ConfigError, read_config
from ..data.datasets import check_same_classes
from ..data.loader import TrainLoader, images_of_a_process
from ..data.seeding import seed_of_run
from .evaluation import evaluate, with_diagnostics
from .parallel import usable_device
from .precision import autocast_dtype
from .process import begin, holds_run, set_up_logging
from .run import Results, RunParts, RunSettings
from .solver import ScheduleKeys, clip_full_model, scale_to_batch_size
from .step import check_parts

logger = logging.getLogger(__name__)

SCHEDULE = ScheduleKeys(
    batch="dataloader.train.total_batch_size",
    reference="train.reference_batch_size",
    rate="optimizer.lr",
    length="train.max_iter",
    # Milestones and warm-up are shares of the length.
    counts=("train.checkpointer.period", "train.eval_period", "model.proposal_generator.temperature.num_iters"),
)

# Fields of ``train`` that a config need not have.
_DEFAULTS: dict[str, Any] = {
    "init_checkpoint": "",
    "seed": -1,
    "cudnn_benchmark": False,
    # What length, periods and learning rate are written for; 0: they are never scaled.
    "reference_batch_size": 0,
    "accumulate_steps": 1,
    # Of the norm of all gradients together; 0: no clipping.
    "max_gradient_norm": 0.0,
    # Of trainings, and of evaluations. precision: float16 or bfloat16; on the CPU always bfloat16.
    "amp": {"enabled": False, "evaluation": False, "precision": "float16"},
    "ema": {"enabled": False, "decay": 0.9999},
    "ddp": {},
    "checkpointer": {"period": 5000, "max_to_keep": None},
    "eval_period": 5000,
    "precise_bn_iters": 0,
    "test_loss": False,
    "best_metric": "bbox/AP",
    "patience": 0,
    "log_period": 20,
    "loggers": ["tensorboard"],
    "device": "cuda",
}
_REQUIRED = (
    *("train.output_dir", "train.max_iter", "model", "dataloader.train", "dataloader.test", "dataloader.evaluator"),
    *("optimizer", "lr_multiplier"),
)


def setup(args: argparse.Namespace) -> DictConfig:
    """The config of a run, from detectron2's command line; all processes call this.

    Sets up logging, scales the schedule to the batch, and seeds random numbers. An evaluation writes ``config.yaml``; a
    training does so in :meth:`TrainingRun.resume_or_load`.

    Raises:
        ConfigError: the config cannot be read, or has a value that cannot be used.
    """
    cfg: DictConfig = read_config(args.config_file, args.opts)
    missing = [key for key in _REQUIRED if OmegaConf.select(cfg, key) is None]
    if missing:
        raise ConfigError(f"{args.config_file} has no {', '.join(missing)}: add it, as in the configs of the model zoo")
    cfg.train = OmegaConf.merge(_DEFAULTS, cfg.train)
    set_up_logging(cfg.train.output_dir)
    trained_on, tested_on = dataset_names(cfg.dataloader.train), dataset_names(cfg.dataloader.test)
    check_same_classes([*([] if args.eval_only else trained_on), *tested_on])
    scale_schedule(cfg)
    cfg.train.device = usable_device(str(cfg.train.device))
    cfg.train.seed = seed_of_run(cfg.train.seed, cfg.train.output_dir, getattr(args, "resume", False))
    if not args.eval_only:
        batch = OmegaConf.select(cfg, SCHEDULE.batch)
        if batch is not None:
            check_parts(images_of_a_process(batch), cfg.train.accumulate_steps)
        settings_of(cfg)
    benchmark = cfg.train.cudnn_benchmark and not args.eval_only
    begin(args, OmegaConf.to_yaml(cfg), tested_on, cfg.train.seed, benchmark)
    # A training writes its config once its data and checkpoint are known to be usable.
    if args.eval_only and comm.is_main_process() and not holds_run(cfg.train.output_dir):
        save_config(cfg)
    return cfg


def scale_schedule(cfg: DictConfig) -> None:
    """Scales the schedule to the batch, and tells the temperature of dynamic proposals the length of the training."""
    scale_to_batch_size(cfg, SCHEDULE)
    if OmegaConf.select(cfg, "model.proposal_generator.temperature.max_iter") is not None:
        cfg.model.proposal_generator.temperature.max_iter = cfg.train.max_iter


def save_config(cfg: DictConfig) -> None:
    """Writes ``config.yaml`` into the output folder."""
    file = Path(cfg.train.output_dir) / "config.yaml"
    partial = file.with_name(f".{file.name}.partial")
    LazyConfig.save(cfg, str(partial))
    partial.replace(file)


def settings_of(cfg: DictConfig) -> RunSettings:
    """The settings of a training."""
    train = cfg.train
    return RunSettings(
        output_dir=train.output_dir,
        weights=train.init_checkpoint,
        max_iter=train.max_iter,
        seed=train.seed,
        checkpoint_period=train.checkpointer.period,
        max_to_keep=train.checkpointer.max_to_keep,
        eval_period=train.eval_period,
        precise_bn_iters=train.precise_bn_iters,
        log_period=train.log_period,
        accumulate_steps=cfg.train.accumulate_steps,
        dtype=_dtype(cfg, "enabled"),
        ema_decay=train.ema.decay if train.ema.enabled else None,
        best_metric=train.best_metric,
        patience=train.patience,
        loggers=tuple(train.loggers),
        ddp=dict(train.ddp),
    )


def build_model(cfg: DictConfig) -> nn.Module:
    """The detector, on its device."""
    model: nn.Module = _instantiate(cfg, "model").to(cfg.train.device)
    logger.debug(f"Model:\n{model}")
    return model


def build_parts(cfg: DictConfig) -> RunParts:
    """The parts of a training."""
    kept = copy.deepcopy(cfg)  # without the model
    model = build_model(cfg)
    # Before the training: what is wrong with a test set is better known now than at the evaluation.
    test_loaders = _build_for_test_sets(cfg, "dataloader.test")
    cfg.optimizer.params.model = model
    optimizer = _instantiate(cfg, "optimizer")
    if cfg.train.max_gradient_norm:
        clip_full_model(optimizer, cfg.train.max_gradient_norm, 2.0)
    loader = _instantiate(cfg, "dataloader.train")
    if isinstance(loader, TrainLoader):
        loader.pin_memory |= str(cfg.train.device).startswith("cuda")
    return RunParts(
        settings=settings_of(cfg),
        model=model,
        optimizer=optimizer,
        scheduler=LRMultiplier(optimizer, _instantiate(cfg, "lr_multiplier"), cfg.train.max_iter),
        train_loader=loader,
        evaluate=lambda model: _evaluate(cfg, model, test_loaders),
        classes=DetectorClasses.from_datasets(dataset_names(cfg.dataloader.train)),
        config=json.loads(json.dumps(OmegaConf.to_container(kept), default=str)),
        save_config=lambda: save_config(kept),
    )


def test(cfg: DictConfig, model: nn.Module) -> Results:
    """Evaluates a model on the test sets; see :func:`.evaluation.evaluate`."""
    return _evaluate(cfg, model, _build_for_test_sets(cfg, "dataloader.test"))


def _evaluate(cfg: DictConfig, model: nn.Module, loaders: Sequence[Any]) -> Results:
    names = dataset_names(cfg.dataloader.test)
    evaluators = _build_for_test_sets(cfg, "dataloader.evaluator")
    if not len(names) == len(loaders) == len(evaluators):
        raise ConfigError(
            f"dataloader.test has {len(loaders)} loaders of {len(names)} data sets, dataloader.evaluator "
            f"{len(evaluators)}: give one of each a test set"
        )

    test_sets = (
        (name, loader, with_diagnostics(inner, model, loss=cfg.train.test_loss))
        for name, loader, inner in zip(names, loaders, evaluators, strict=True)
    )
    return evaluate(model, test_sets, _dtype(cfg, "evaluation"))


def _build_for_test_sets(cfg: DictConfig, key: str) -> list[Any]:
    """Builds the loader or evaluator of each test set. If all ``dataset.name`` are null, there is no test set."""
    test_sets = _as_list(cfg.dataloader.test)
    if all(OmegaConf.select(loader, "dataset.name", default="") is None for loader in test_sets):
        return []
    return _as_list(_instantiate(cfg, key))


def dataset_names(loaders: DictConfig | ListConfig) -> list[str]:
    """The data sets of a loader, or of several: ``dataset.name``, or ``dataset.names`` as in detectron2's configs."""
    names = []
    for loader in _as_list(loaders):
        given = OmegaConf.select(loader, "dataset.name") or OmegaConf.select(loader, "dataset.names")
        names += _as_list(given) if given else []
    return names


def _instantiate(cfg: DictConfig, key: str) -> Any:
    """Builds a part.

    Raises:
        ConfigError: it does not take the arguments that the config gives it.
    """
    try:
        return instantiate(OmegaConf.select(cfg, key))
    except TypeError as error:
        raise ConfigError(f"{key} of the config cannot be built: {error}") from error


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, ListConfig)) else [value]


def _dtype(cfg: DictConfig, switch: str) -> torch.dtype | None:
    """That of mixed precision, if ``train.amp`` has the switch on."""
    amp = cfg.train.amp
    return autocast_dtype(amp.precision, cfg.train.device, "train.amp.precision") if amp[switch] else None
