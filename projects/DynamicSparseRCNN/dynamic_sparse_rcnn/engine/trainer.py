"""detectron2's default trainer with what Sparse R-CNN needs, and the set-up of a run."""

from __future__ import annotations

import argparse
import itertools
import logging
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoints.classes import DetectorClasses
from ..checkpoints.loading import Checkpointer
from ..config import resolve_config
from ..config_reading import read_config
from ..data.checks import load_checked_dataset, report_dataset, require_boxes
from ..data.datasets import check_same_classes, resolve_num_classes, with_known_classes
from ..data.loader import TrainLoader, build_train_loader, images_of_a_process
from ..data.mapper import DetectionMapper, Resize
from ..data.seeding import seed_of_run, shared_seed
from .accumulation import check_parts
from .evaluation import build_evaluator, voc_year
from .hooks import EvalHook, IterationSeed
from .parallel import broadcast_buffers, distribute, has_idle_levels
from .precision import autocast_dtype, build_training_loop, check_precision, evaluation_autocast
from .proposal_evaluator import ProposalEvaluator
from .run_config import save_config, set_up
from .solver import build_optimizer, scale_to_batch_size

logger = logging.getLogger(__name__)

# Images that take the place of one that can no longer be read.
_SPARE_IMAGES = 16


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` with checked data sets, AdamW with full-model clipping and COCO evaluation.

    Data sets that are named by their files, ``coco:<json>:<image folder>`` say, need no registration.
    """

    _trainer: SimpleTrainer

    def __init__(self, cfg: CfgNode) -> None:
        """Builds all that a training needs; to be called by all processes of a run."""
        # Not DefaultTrainer's own, which distributes over GPUs alone, and has mixed precision on GPUs in float16 alone.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        amp = cfg.SOLVER.AMP
        self._trainer = build_training_loop(
            distribute(model, broadcast_buffers=False, find_unused_parameters=has_idle_levels(model)),
            data_loader,
            optimizer,
            dtype=autocast_dtype(amp.PRECISION, cfg.MODEL.DEVICE) if amp.ENABLED else None,
            steps=cfg.SOLVER.ACCUMULATE_STEPS,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            classes=DetectorClasses.from_datasets(cfg.DATASETS.TRAIN),
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase | None]:
        """detectron2's hooks, after :class:`IterationSeed` and with our :class:`EvalHook`."""

        def evaluate() -> OrderedDict:
            self._last_eval_results: OrderedDict = self.test(self.cfg, self.model)
            return self._last_eval_results

        own = EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate)
        theirs = super().build_hooks()
        return [
            IterationSeed(shared_seed(self.cfg.SEED)),
            *(own if isinstance(hook, hooks.EvalHook) else hook for hook in theirs),
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Goes on with the run in ``OUTPUT_DIR``, or starts one from ``MODEL.WEIGHTS``; says which.

        Raises:
            ValueError: if no iteration is left, or the run had another model.
        """
        _tell_start(self.cfg, resume, self.checkpointer.get_checkpoint_file())
        super().resume_or_load(resume)
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.start_iter = self.start_iter
        if self.start_iter >= self.max_iter:
            raise ValueError(
                f"Nothing is left to train: the run in {self.cfg.OUTPUT_DIR} has done {self.start_iter} iterations, "
                f"and SOLVER.MAX_ITER is {self.max_iter}. To train for longer, raise SOLVER.MAX_ITER; to evaluate, use "
                "--eval-only; for a new run from its weights, leave out --resume, name its last checkpoint as "
                "MODEL.WEIGHTS and give another OUTPUT_DIR."
            )
        if resume:
            save_config(self.cfg, self.cfg.OUTPUT_DIR)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the run: iteration, hooks, and optimiser, which detectron2 0.6 forgets."""
        return super().state_dict() | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of :meth:`state_dict`."""
        TrainerBase.load_state_dict(self, state_dict)  # DefaultTrainer's, of detectron2's main branch, does both
        self._trainer.load_state_dict(state_dict["_trainer"])

    @property
    def last_results(self) -> dict[str, dict[str, float]]:
        """The metrics of the last evaluation, by task and name; empty before the first."""
        return getattr(self, "_last_eval_results", {})

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """The checked images of all ``DATASETS.TRAIN``, through :class:`DetectionMapper`; logs what they hold."""
        dicts = list(itertools.chain.from_iterable(_report(cfg, name, is_train=True) for name in cfg.DATASETS.TRAIN))
        require_boxes(dicts, cfg.DATASETS.TRAIN)
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            dicts = filter_images_with_only_crowd_annotations(dicts)
        mapper = DetectionMapper(cfg, is_train=True, spares=dicts[:_SPARE_IMAGES])
        return build_train_loader(cfg, dicts, mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """The checked images of one data set, each once."""
        return build_detection_test_loader(
            load_checked_dataset(dataset_name, num_classes=cfg.MODEL.SparseRCNN.NUM_CLASSES),
            mapper=DetectionMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """See :func:`.evaluation.build_evaluator`; results go to ``output_folder`` (``<OUTPUT_DIR>/inference``)."""
        return build_evaluator(cfg, dataset_name, output_folder or str(Path(cfg.OUTPUT_DIR) / "inference"))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> OrderedDict:
        """``DefaultTrainer.test``; without ``evaluators`` it evaluates the initial proposals too, if there are any.

        All processes evaluate the main one's model: statistics of batches, which each has of its own, are its.
        """
        broadcast_buffers(model)
        generator = getattr(getattr(model, "module", model), "proposal_generator", None)
        if evaluators is None and generator is not None:
            # COCO evaluation comes last, and with it the lines in the log that one looks for.
            evaluators = [
                DatasetEvaluators([ProposalEvaluator(name, generator), cls.build_evaluator(cfg, name)])
                for name in cfg.DATASETS.TEST
            ]
        with evaluation_autocast(cfg):
            return super().test(cfg, model, evaluators)


def _tell_start(cfg: CfgNode, resume: bool, last_checkpoint: str) -> None:
    weights = cfg.MODEL.WEIGHTS
    if resume and last_checkpoint:
        logger.info(f"Going on with the run in {cfg.OUTPUT_DIR} from {last_checkpoint}; MODEL.WEIGHTS is not read")
        return
    source = f"the weights of {weights}" if weights else "random weights"
    if resume:
        logger.warning(
            f"--resume finds no checkpoint in {cfg.OUTPUT_DIR}: this run starts at iteration 0, from {source}"
        )
        return
    logger.info(f"A new run starts at iteration 0, from {source}")
    if last_checkpoint:
        logger.warning(
            f"{cfg.OUTPUT_DIR} holds the checkpoints of an earlier run, which this one will overwrite. To go on with "
            "that run instead, use --resume; to keep both, give another OUTPUT_DIR."
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """Makes the frozen config of a run from detectron2's command line, and does its set-up.

    Looks up the number of classes, scales the schedule to the batch, falls back to the CPU where there
    is no CUDA device; then detectron2's own set-up (logging, seed, ``config.yaml`` in ``OUTPUT_DIR``), and a
    look at the test sets, so that what is wrong with them is known before the training and not after it.
    """
    cfg = read_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="dynamic_sparse_rcnn")
    prepare_config(cfg, is_train=not args.eval_only)
    cfg.SEED = seed_of_run(cfg.SEED, cfg.OUTPUT_DIR, getattr(args, "resume", False))
    cfg.freeze()
    set_up(cfg, args, cfg.OUTPUT_DIR)
    for name in cfg.DATASETS.TEST:
        voc_year(cfg.TEST.VOC_METRIC, name)  # an error in it is better known now than at the evaluation
        _report(cfg, name, is_train=False)
    return cfg


def prepare_config(cfg: CfgNode, is_train: bool) -> None:
    """Fills in what the config leaves open, or to the data, the batch and the machine; registers the data sets."""
    resolve_config(cfg)
    num_classes = cfg.MODEL.SparseRCNN.NUM_CLASSES = resolve_num_classes(cfg)
    trained_on = cfg.DATASETS.TRAIN if is_train else with_known_classes(cfg.DATASETS.TRAIN, num_classes)
    check_same_classes([*trained_on, *cfg.DATASETS.TEST])
    scale_to_batch_size(cfg)
    check_precision(cfg)
    if is_train:
        if cfg.SOLVER.MAX_ITER < 1:
            raise ValueError(f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: a training needs at least 1 iteration")
        check_parts(images_of_a_process(cfg.SOLVER.IMS_PER_BATCH), cfg.SOLVER.ACCUMULATE_STEPS)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but there is no CUDA device: using the CPU")
        cfg.MODEL.DEVICE = "cpu"


def _report(cfg: CfgNode, name: str, is_train: bool) -> list[dict[str, Any]]:
    node = cfg.MODEL.SparseRCNN
    return report_dataset(
        name,
        num_classes=node.NUM_CLASSES,
        num_proposals=node.NUM_PROPOSALS,
        resize=Resize.of(build_augmentation(cfg, is_train)),
        is_train=is_train,
    )
