"""Evaluation: COCO's metric for every data set, what is asked for beside it, and the loop over the test sets."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.utils import comm
from torch import nn

from ..data.datasets import register_dataset
from ..data.ground_truth import ensure_coco_json, file_stem
from .hooks import Results
from .loss_evaluator import LossEvaluator
from .parallel import broadcast_buffers
from .precision import autocast
from .proposal_evaluator import ProposalEvaluator
from .voc_evaluator import VOCEvaluator

logger = logging.getLogger(__name__)

_STYLES = {"voc2007": 2007, "voc2012": 2012}


def evaluate(
    model: nn.Module, test_sets: Iterable[tuple[str, Iterable, DatasetEvaluator]], dtype: torch.dtype | None = None
) -> Results:
    """Evaluates a detector; all processes of a run call this.

    All evaluate the main process's model: statistics of batches, which each has of its own, are its.

    Args:
        model: perhaps distributed; afterwards it is in the mode that it was in.
        test_sets: of each the name, a loader of its images, and what evaluates the detections.
        dtype: of mixed precision; None: single precision.

    Returns:
        In the main process the metrics by task, of several test sets by their names. In the others there are no
        metrics: an empty dict, of several test sets one for each name.
    """
    broadcast_buffers(model)
    results: Results = {}
    parameter = next(model.parameters(), None)  # exported detectors have none
    with autocast(dtype, "cpu" if parameter is None else parameter.device):
        for name, loader, evaluator in test_sets:
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                logger.info(f"Evaluation results for {name}:")
                print_csv_format(results[name])
    return next(iter(results.values())) if len(results) == 1 else results


def with_diagnostics(evaluator: DatasetEvaluator, model: nn.Module, *, loss: bool = False) -> DatasetEvaluator:
    """Adds what only the inside of a detector tells, where the model has it.

    Args:
        evaluator: of the detections. It comes last, and with it the lines of the log that one looks for.
        model: perhaps distributed; with a ``proposal_generator``, the initial proposals are evaluated.
        loss: whether the losses are too.

    Raises:
        ValueError: the losses are asked for, and the model has no head or no criterion with sums.
    """
    detector: Any = getattr(model, "module", model)
    inner: list[DatasetEvaluator] = []
    if (generator := getattr(detector, "proposal_generator", None)) is not None:
        inner.append(ProposalEvaluator(generator))
    if loss:
        inner.append(LossEvaluator(detector))
    return DatasetEvaluators([*inner, evaluator]) if inner else evaluator


def build_evaluator(dataset_name: str, output_folder: str, voc_metric: str = "auto") -> DatasetEvaluator:
    """COCO's evaluator, and VOC's beside it where ``voc_metric`` asks for it. All processes call this.

    Args:
        dataset_name: registered, or of a form that needs no registration.
        output_folder: where detections and, if need be, ground truths are written.
        voc_metric: see :func:`voc_year`.

    Raises:
        ValueError: ``voc_metric`` has another value.
    """
    year = voc_year(voc_metric, dataset_name)
    ensure_coco_json(dataset_name, output_folder)
    coco = COCOEvaluator(dataset_name, output_dir=output_folder)
    return DatasetEvaluators([coco, VOCEvaluator(dataset_name, year)]) if year else coco


def voc_year(metric: str, dataset_name: str) -> int | None:
    """The style of VOC's metric for a data set, 2007 or 2012, or None for no such metric.

    Args:
        metric: ``TEST.VOC_METRIC``: ``auto`` takes the year of the data set's metadata, which VOC sets have; ``none``,
            ``voc2007`` and ``voc2012`` are for all.
        dataset_name: see :func:`build_evaluator`.
    """
    if metric == "auto":
        register_dataset(dataset_name)
        year: int | None = MetadataCatalog.get(dataset_name).get("year")
        return year
    if metric != "none" and metric not in _STYLES:
        raise ValueError(f"TEST.VOC_METRIC is {metric!r}: use auto, none, {' or '.join(_STYLES)}")
    return _STYLES.get(metric)


def inference_folder(output_dir: str, dataset_name: str, dataset_names: Iterable[str], kind: str = "inference") -> str:
    """Where the detections on a test set are written: a folder of its own, if there are several sets.

    Args:
        output_dir: of the run.
        dataset_name: one of ``dataset_names``.
        dataset_names: all test sets of the run.
        kind: name of the folder.
    """
    if len(set(dataset_names)) == 1:
        return str(Path(output_dir) / kind)
    return str(Path(output_dir) / kind / file_stem(dataset_name))
