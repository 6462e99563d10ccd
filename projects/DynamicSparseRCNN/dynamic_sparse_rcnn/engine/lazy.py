"""Training and evaluation of lazy configs, with the fields that detectron2's own have.

Beside them ``train.max_gradient_norm`` clips the norm of all gradients together; 0 does not.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, default_setup, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoints.classes import DetectorClasses
from .checkpointing import Checkpointer, load_for_evaluation
from .solver import clip_full_model
from .trainer import CPUAutocastTrainer


def run(args: argparse.Namespace, trust: bool = False) -> OrderedDict | None:
    """One process of what ``tools/train_net.py`` does with a ``.py`` config: trains, or evaluates.

    Args:
        args: detectron2's command line; ``opts`` are ``key=value`` pairs.
        trust: whether pickled checkpoints may run code.

    Raises:
        FileNotFoundError: an evaluation that goes on finds no checkpoint.
        ValueError: an evaluation has no weights, or not all of them; or nothing is left to train.
    """
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    if str(cfg.train.device).startswith("cuda") and not torch.cuda.is_available():
        cfg.train.device = "cpu"
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="dynamic_sparse_rcnn")
    default_setup(cfg, args)
    model = instantiate(cfg.model).to(cfg.train.device)
    if args.eval_only:
        load_for_evaluation(model, cfg.train.init_checkpoint, cfg.train.output_dir, args.resume, trust)
        return evaluate(cfg, create_ddp_model(model))
    return train(cfg, model, args.resume, trust)


def evaluate(cfg: Any, model: nn.Module) -> OrderedDict:
    """Runs ``dataloader.evaluator`` over ``dataloader.test``."""
    loader = instantiate(cfg.dataloader.test)  # before the evaluator, which looks for a registered data set
    results: OrderedDict = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def train(cfg: Any, model: nn.Module, resume: bool, trust: bool) -> OrderedDict | None:
    """Trains for ``train.max_iter`` iterations, and gives the last evaluation's results.

    Raises:
        ValueError: there is no iteration left.
    """
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    if cfg.train.max_gradient_norm:
        clip_full_model(optimizer, cfg.train.max_gradient_norm, 2.0)
    loader = instantiate(cfg.dataloader.train)
    trainer = _trainer_class(cfg)(create_ddp_model(model, **cfg.train.ddp), loader, optimizer)
    classes = DetectorClasses.from_datasets([cfg.dataloader.train.dataset.name])
    checkpointer = Checkpointer(model, cfg.train.output_dir, trust=trust, classes=classes, trainer=trainer)
    results: list[OrderedDict] = []

    def test() -> OrderedDict:
        results.append(evaluate(cfg, trainer.model))
        return results[-1]

    on_main = comm.is_main_process()
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter) if on_main else []
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if on_main else None,
            hooks.EvalHook(cfg.train.eval_period, test),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period) if on_main else None,
        ]
    )
    goes_on = resume and checkpointer.has_checkpoint()
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if goes_on else 0
    if start >= cfg.train.max_iter:
        raise ValueError(
            f"Nothing is left to train: the run in {cfg.train.output_dir} has done {start} iterations, and "
            f"train.max_iter is {cfg.train.max_iter}. To train for longer, raise it; to evaluate, use --eval-only."
        )
    trainer.train(start, cfg.train.max_iter)
    return results[-1] if results else None


def _trainer_class(cfg: Any) -> type[SimpleTrainer]:
    if not cfg.train.amp.enabled:
        return SimpleTrainer
    return CPUAutocastTrainer if cfg.train.device == "cpu" else AMPTrainer
