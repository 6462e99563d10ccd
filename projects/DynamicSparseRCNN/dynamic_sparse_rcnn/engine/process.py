"""What one process of a run does before anything is built: logging, seed, and the config that the run keeps."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)

_LOGGERS = ("fvcore", "timm", "detectron2", "dynamic_sparse_rcnn")


def set_up_logging(output_dir: str) -> None:
    """Logs to the terminal (main process) and, in detail, to ``log.txt`` in the output folder (of each process)."""
    logging.raiseExceptions = False  # a full disk would print a stack trace for each line of the log
    for name in _LOGGERS:
        for handler in setup_logger(output_dir, distributed_rank=comm.get_rank(), name=name).handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setLevel(logging.INFO)
                handler.addFilter(_is_not_about_classifier)


def _is_not_about_classifier(record: logging.LogRecord) -> bool:
    """False for timm's warning of unexpected keys: they are the classifier's, which no backbone has."""
    return not (record.name.startswith("timm.") and record.getMessage().startswith("Unexpected keys"))


def begin(args: argparse.Namespace, config: str, test_sets: Sequence[str], seed: int, benchmark: bool = False) -> None:
    """Logs what was asked for and where it runs, and seeds all random numbers, other ones in each process.

    Args:
        args: of the command line.
        config: all of it, to be logged.
        test_sets: names of the data sets that are evaluated on.
        seed: of the run.
        benchmark: whether cuDNN looks for its fastest convolutions.
    """
    logger.info(f"Rank of this process: {comm.get_rank()} of {comm.get_world_size()}")
    logger.debug(f"Environment:\n{collect_env_info()}")
    logger.debug(f"Command line: {args}")
    logger.debug(f"Config:\n{config}")
    logger.info("log.txt in the output folder also has the environment, the whole config and the model")
    if not test_sets:
        logger.info("There is no test set: nothing is evaluated")
    seed_all_rng(seed + comm.get_rank())
    torch.backends.cudnn.benchmark = benchmark


def holds_run(output_dir: str) -> bool:
    """Whether the output folder is that of a run, whose ``config.yaml`` an evaluation leaves alone."""
    folder = Path(output_dir)
    return (folder / "last_checkpoint").is_file() and (folder / "config.yaml").is_file()
