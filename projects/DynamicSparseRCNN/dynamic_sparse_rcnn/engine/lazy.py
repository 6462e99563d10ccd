"""Training and evaluation of lazy configs, with the fields that detectron2's own have.

Beside them ``train.max_gradient_norm`` clips the norm of all gradients together; 0 does not. ``train.amp`` has
``precision``, and ``evaluation``: whether evaluations are run in it too.
"""

from __future__ import annotations

import argparse
import copy
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoints.classes import DetectorClasses
from ..checkpoints.loading import Checkpointer, load_for_evaluation
from ..config_reading import read_config
from ..data.loader import TrainLoader
from ..data.seeding import seed_of_run
from .hooks import EvalHook, IterationSeed
from .parallel import broadcast_buffers, distribute
from .precision import autocast, autocast_dtype, build_training_loop
from .run_config import save_config, set_up
from .solver import clip_full_model


def run(args: argparse.Namespace, trust: bool = False) -> OrderedDict | None:
    """One process of what ``tools/train_net.py`` does with a ``.py`` config: trains, or evaluates.

    Args:
        args: detectron2's command line; ``opts`` are ``key=value`` pairs.
        trust: whether pickled checkpoints may run code.

    Raises:
        FileNotFoundError: an evaluation that goes on finds no checkpoint.
        ValueError: an evaluation has no weights, or not all of them; or nothing is left to train.
    """
    cfg = read_config(args.config_file, args.opts)
    if str(cfg.train.device).startswith("cuda") and not torch.cuda.is_available():
        cfg.train.device = "cpu"
    cfg.train.seed = seed_of_run(cfg.train.get("seed", -1), cfg.train.output_dir, args.resume)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="dynamic_sparse_rcnn")
    set_up(cfg, args, cfg.train.output_dir)
    model = instantiate(cfg.model).to(cfg.train.device)
    if args.eval_only:
        load_for_evaluation(model, cfg.train.init_checkpoint, cfg.train.output_dir, args.resume, trust)
        return evaluate(cfg, model)
    return train(cfg, model, args.resume, trust)


def evaluate(cfg: Any, model: nn.Module) -> OrderedDict:
    """Runs ``dataloader.evaluator`` over ``dataloader.test``."""
    broadcast_buffers(model)
    loader = instantiate(cfg.dataloader.test)  # before the evaluator, which looks for a registered data set
    with autocast(_dtype(cfg, "evaluation"), cfg.train.device):
        results: OrderedDict = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def train(cfg: Any, model: nn.Module, resume: bool, trust: bool) -> OrderedDict | None:
    """Trains for ``train.max_iter`` iterations, and gives the last evaluation's results.

    Raises:
        ValueError: there is no iteration left.
    """
    config = copy.deepcopy(cfg)  # without the model
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    if cfg.train.max_gradient_norm:
        clip_full_model(optimizer, cfg.train.max_gradient_norm, 2.0)
    loader = instantiate(cfg.dataloader.train)
    trainer = build_training_loop(
        distribute(model, **cfg.train.ddp),
        loader,
        optimizer,
        dtype=_dtype(cfg, "enabled"),
    )
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
            IterationSeed(cfg.train.seed),
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if on_main else None,
            EvalHook(cfg.train.eval_period, test),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period) if on_main else None,
        ]
    )
    start = _load(cfg, checkpointer, trainer, resume)
    if resume and start:
        save_config(config, cfg.train.output_dir)
    if isinstance(loader, TrainLoader):
        loader.start_iter = start
        loader.pin_memory |= str(cfg.train.device).startswith("cuda")
    trainer.train(start, cfg.train.max_iter)
    return results[-1] if results else None


def _dtype(cfg: Any, switch: str) -> torch.dtype | None:
    """That of mixed precision, if ``train.amp`` has the switch on."""
    amp = cfg.train.amp
    return autocast_dtype(amp.precision, cfg.train.device, "train.amp.precision") if amp.get(switch, False) else None


def _load(cfg: Any, checkpointer: Checkpointer, trainer: SimpleTrainer, resume: bool) -> int:
    """Loads the run's last checkpoint, or the weights that it starts from, and gives its first iteration."""
    goes_on = resume and checkpointer.has_checkpoint()
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if goes_on else 0
    if start >= cfg.train.max_iter:
        raise ValueError(
            f"Nothing is left to train: the run in {cfg.train.output_dir} has done {start} iterations, and "
            f"train.max_iter is {cfg.train.max_iter}. To train for longer, raise it; to evaluate, use --eval-only."
        )
    return start
