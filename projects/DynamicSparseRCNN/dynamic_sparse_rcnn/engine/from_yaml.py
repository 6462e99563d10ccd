"""The parts of a run, from a yaml config, and what has to be done before they are built."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data.detection_utils import build_augmentation
from detectron2.utils import comm

from ..checkpoints.classes import DetectorClasses
from ..config import resolve_config
from ..config_reading import read_config
from ..data.checks import report_dataset, report_training_sets
from ..data.datasets import check_same_classes, resolve_num_classes, with_known_classes
from ..data.loader import TrainLoader, build_train_loader, images_of_a_process
from ..data.mapper import DetectionMapper, Resize
from ..data.seeding import seed_of_run
from ..file_io import whole_file
from .evaluation import voc_year
from .parallel import usable_device
from .precision import autocast_dtype
from .process import begin, holds_run, set_up_logging
from .run import RunParts, RunSettings
from .solver import ScheduleKeys, scale_to_batch_size
from .step import check_parts

if TYPE_CHECKING:
    from .trainer import Trainer

SCHEDULE = ScheduleKeys(
    batch="SOLVER.IMS_PER_BATCH",
    reference="SOLVER.REFERENCE_BATCH_SIZE",
    rate="SOLVER.BASE_LR",
    length="SOLVER.MAX_ITER",
    counts=(
        "SOLVER.WARMUP_ITERS",
        "SOLVER.CHECKPOINT_PERIOD",
        "TEST.EVAL_PERIOD",
        "MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS",
    ),
    steps=("SOLVER.STEPS",),
)


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run, from detectron2's command line; all processes call this.

    Sets up logging, resolves what the config leaves open (:func:`prepare_config`), seeds random numbers, and looks at
    the test sets, so that what is wrong with them shows before the training. An evaluation writes ``config.yaml``; a
    training does so in :meth:`TrainingRun.resume_or_load`.
    """
    cfg = read_config(args.config_file, args.opts)
    set_up_logging(cfg.OUTPUT_DIR)
    prepare_config(cfg, is_train=not args.eval_only)
    cfg.SEED = seed_of_run(cfg.SEED, cfg.OUTPUT_DIR, getattr(args, "resume", False))
    cfg.freeze()
    begin(args, cfg.dump(), cfg.DATASETS.TEST, cfg.SEED, cfg.CUDNN_BENCHMARK and not args.eval_only)
    # A training writes its config once its data and checkpoint are known to be usable.
    if args.eval_only and comm.is_main_process() and not holds_run(cfg.OUTPUT_DIR):
        save_config(cfg)
    for name in cfg.DATASETS.TEST:
        voc_year(cfg.TEST.VOC_METRIC, name)  # an error in it is better known now than at the evaluation
        report_dataset(name, is_train=False, **_expectations(cfg, is_train=False))
    return cfg


def prepare_config(cfg: CfgNode, is_train: bool) -> None:
    """Resolves what the config leaves open, or to the data, the batch and the machine; registers the data sets.

    Raises:
        ValueError: a value is out of range, or contradicts another.
    """
    resolve_config(cfg)
    num_classes = cfg.MODEL.SparseRCNN.NUM_CLASSES = resolve_num_classes(cfg)
    trained_on = cfg.DATASETS.TRAIN if is_train else with_known_classes(cfg.DATASETS.TRAIN, num_classes)
    check_same_classes([*trained_on, *cfg.DATASETS.TEST])
    scale_to_batch_size(cfg, SCHEDULE)
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    evaluation_dtype(cfg)
    if is_train:
        check_parts(images_of_a_process(cfg.SOLVER.IMS_PER_BATCH), cfg.SOLVER.ACCUMULATE_STEPS)
        settings_of(cfg)


def save_config(cfg: CfgNode) -> None:
    """Writes ``config.yaml`` into the output folder."""
    with whole_file(Path(cfg.OUTPUT_DIR) / "config.yaml") as file:
        file.write(cfg.dump().encode())


def settings_of(cfg: CfgNode) -> RunSettings:
    """The settings of a training."""
    solver, test = cfg.SOLVER, cfg.TEST
    return RunSettings(
        output_dir=cfg.OUTPUT_DIR,
        weights=cfg.MODEL.WEIGHTS,
        max_iter=solver.MAX_ITER,
        seed=cfg.SEED,
        checkpoint_period=solver.CHECKPOINT_PERIOD,
        eval_period=test.EVAL_PERIOD,
        precise_bn_iters=test.PRECISE_BN.NUM_ITER if test.PRECISE_BN.ENABLED else 0,
        accumulate_steps=solver.ACCUMULATE_STEPS,
        dtype=autocast_dtype(solver.AMP.PRECISION, cfg.MODEL.DEVICE) if solver.AMP.ENABLED else None,
        ema_decay=solver.EMA.DECAY if solver.EMA.ENABLED else None,
        best_metric=test.BEST_METRIC,
        patience=solver.PATIENCE,
        loggers=tuple(cfg.LOGGERS),
    )


def evaluation_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Of the mixed precision that evaluations run in; None: single precision."""
    amp = cfg.TEST.AMP
    return autocast_dtype(amp.PRECISION, cfg.MODEL.DEVICE, "TEST.AMP.PRECISION") if amp.ENABLED else None


def build_parts(cfg: CfgNode, trainer: type[Trainer]) -> RunParts:
    """The parts of a training, made by the class methods of a trainer, which users override."""
    model = trainer.build_model(cfg)
    optimizer = trainer.build_optimizer(cfg, model)
    return RunParts(
        settings=settings_of(cfg),
        model=model,
        optimizer=optimizer,
        train_loader=trainer.build_train_loader(cfg),
        scheduler=trainer.build_lr_scheduler(cfg, optimizer),
        evaluate=lambda model: trainer.test(cfg, model),
        classes=DetectorClasses.from_datasets(cfg.DATASETS.TRAIN),
        config=yaml.safe_load(cfg.dump()),
        save_config=lambda: save_config(cfg),
    )


def build_checked_train_loader(cfg: CfgNode) -> TrainLoader:
    """The checked images of all ``DATASETS.TRAIN``, through :class:`DetectionMapper`; logs what they hold."""
    records = report_training_sets(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, **_expectations(cfg, is_train=True)
    )
    return build_train_loader(cfg, records, DetectionMapper(cfg, is_train=True))


def _expectations(cfg: CfgNode, is_train: bool) -> dict[str, Any]:
    """What data sets are compared with."""
    return {
        "num_classes": cfg.MODEL.SparseRCNN.NUM_CLASSES,
        "num_proposals": cfg.MODEL.SparseRCNN.NUM_PROPOSALS,
        "resize": Resize.of(build_augmentation(cfg, is_train)),
    }
