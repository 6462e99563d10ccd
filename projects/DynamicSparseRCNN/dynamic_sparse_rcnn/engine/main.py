"""What each process of a run does: it trains or evaluates, from either kind of config."""

from __future__ import annotations

import argparse

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..checkpoints.classes import DetectorClasses
from ..checkpoints.loading import load_for_evaluation
from ..config_reading import is_lazy_config
from ..modeling.test_time_augmentation import DetectorWithTTA
from . import from_lazy, from_yaml
from .evaluation import inference_folder
from .run import Results, TrainingRun
from .trainer import Trainer


def main(args: argparse.Namespace) -> Results:
    """Trains or, with ``eval_only``, evaluates; all processes of a run call this (:func:`.launch.launch`).

    Args:
        args: detectron2's command line; and ``trust_checkpoint``, whether pickled checkpoints may run code.

    Returns:
        In the main process the metrics of the (last) evaluation; empty in the others.

    Raises:
        OSError, ValueError: what is wrong with the command, the config, the data or the checkpoint.
    """
    if not args.config_file:
        raise ValueError("--config-file is needed: a path, or a name in the model zoo")
    if is_lazy_config(args.config_file):
        cfg = from_lazy.setup(args)
        return evaluate_lazy(cfg, args) if args.eval_only else _train(TrainingRun(from_lazy.build_parts(cfg)), args)
    cfg = from_yaml.setup(args)
    return evaluate_yaml(cfg, args) if args.eval_only else _train(Trainer(cfg), args)


def _train(training: TrainingRun, args: argparse.Namespace) -> Results:
    training.checkpointer.trust = getattr(args, "trust_checkpoint", False)
    training.resume_or_load(args.resume)
    return training.train()


def evaluate_yaml(cfg: CfgNode, args: argparse.Namespace) -> Results:
    """Evaluates a checkpoint on all test sets; with ``TEST.AUG.ENABLED`` with test-time augmentation too."""
    model = Trainer.build_model(cfg)
    classes = DetectorClasses.from_datasets(cfg.DATASETS.TEST)
    _load(model, args, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, classes)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        folders = [
            inference_folder(cfg.OUTPUT_DIR, name, cfg.DATASETS.TEST, "inference_TTA") for name in cfg.DATASETS.TEST
        ]
        evaluators = [Trainer.build_evaluator(cfg, *pair) for pair in zip(cfg.DATASETS.TEST, folders, strict=True)]
        augmented = Trainer.test(cfg, DetectorWithTTA(cfg, model), evaluators)
        results |= {f"{task}_TTA": metrics for task, metrics in augmented.items()}
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def evaluate_lazy(cfg: DictConfig, args: argparse.Namespace) -> Results:
    """Evaluates a checkpoint on the test sets."""
    model: nn.Module = from_lazy.build_model(cfg)
    classes = DetectorClasses.from_datasets(from_lazy.dataset_names(cfg.dataloader.test))
    _load(model, args, cfg.train.init_checkpoint, cfg.train.output_dir, classes)
    return from_lazy.test(cfg, model)


def _load(
    model: nn.Module, args: argparse.Namespace, weights: str, output_dir: str, classes: DetectorClasses | None
) -> None:
    trust = getattr(args, "trust_checkpoint", False)
    load_for_evaluation(model, weights, output_dir, args.resume, trust, classes)
