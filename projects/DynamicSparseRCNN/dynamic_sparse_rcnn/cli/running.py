"""What each process of a training or an evaluation does."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..checkpoints.classes import DetectorClasses
from ..checkpoints.loading import load_for_evaluation
from ..config_reading import find_config, is_lazy_config
from ..engine.lazy import run as run_lazy
from ..engine.trainer import Trainer, setup
from ..modeling.test_time_augmentation import DetectorWithTTA

#: Metrics by task, or by data set and task.
Results: TypeAlias = Mapping[str, Any]


def run_process(args: argparse.Namespace) -> OrderedDict | None:
    """Trains or, with ``eval_only``, evaluates; the last line printed is the result.

    Args:
        args: detectron2's command line, and ours (``trust_checkpoint``, ``imports``).
    """
    import_modules(getattr(args, "imports", ()))
    trust = getattr(args, "trust_checkpoint", False)
    if not args.config_file:
        raise ValueError("--config-file is needed: a path, or a name in the model zoo")
    args.config_file = find_config(args.config_file)
    results = run_lazy(args, trust) if is_lazy_config(args.config_file) else _run_yaml(args, trust)
    if comm.is_main_process():
        for line in summarize(results or {}):
            print(line, flush=True)
    return results


def _run_yaml(args: argparse.Namespace, trust: bool) -> OrderedDict | None:
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.checkpointer.trust = trust
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        return OrderedDict(trainer.last_results)
    model = Trainer.build_model(cfg)
    classes = DetectorClasses.from_datasets(cfg.DATASETS.TEST)
    load_for_evaluation(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, args.resume, trust, classes)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        folder = str(Path(cfg.OUTPUT_DIR) / "inference_TTA")
        evaluators = [Trainer.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        augmented = Trainer.test(cfg, DetectorWithTTA(cfg, model), evaluators)
        results |= {f"{task}_TTA": metrics for task, metrics in augmented.items()}
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def import_modules(names: Sequence[str]) -> None:
    """Imports modules of the user, which register parts that configs name; also from the working directory.

    Raises:
        ImportError: there is no such module.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        importlib.import_module(name)


def summarize(results: Results) -> list[str]:
    """``bbox AP .. AP50 .. AP75 ..`` of an evaluation's results, with the data set's name where there are several."""
    metrics = results.get("bbox")
    if metrics is None:
        named = {name: nested for name, nested in results.items() if isinstance(nested, Mapping)}
        return [f"{name}: {line}" for name, nested in named.items() for line in summarize(nested)]
    return ["bbox " + " ".join(f"{name} {metrics[name]:.1f}" for name in ("AP", "AP50", "AP75"))]
