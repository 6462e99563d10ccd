"""``dsrcnn train``."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import DATA_HELP, Subparsers, add_command, add_run_options, detectron2_arguments, run_options

logger = logging.getLogger(__name__)

#: For own data, small enough for a CPU; the data decide the rest.
DEFAULT_CONFIG = "small/dynamic_sparse_rcnn_lite0_FPN_30pro_160px.yaml"
DEFAULT_MINUTES = 10.0
_DESCRIPTION = """Train a detector.
Without --config-file, settings are chosen from the data, the machine and the
time limit; the log explains each. A folder stands for its splits. If there is
no validation data, a fifth of the data is held out (not with --config-file).
Checkpoints, config.yaml, log.txt and TensorBoard's scalars go to --output.
If the run is evaluated, the last line is "bbox AP .. AP50 .. AP75 ..".
KEY VALUE pairs change the config (of a lazy config: KEY=VALUE)."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "train", "--data NAME --output DIR [OPTION ..] [KEY VALUE ..]", _DESCRIPTION)
    parser.add_argument("--data", action="append", default=[], metavar="NAME", help=DATA_HELP)
    parser.add_argument(
        "--val", action="append", default=[], metavar="NAME", help="data set to evaluate on, as for --data"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes", type=positive, metavar="N", help="time limit in minutes; default without a config: 10"
    )
    length.add_argument("--epochs", type=positive, metavar="N", help="length in passes over the training images")
    parser.add_argument("--weights", metavar="RUN_OR_FILE", help="a run or checkpoint to start from")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Trains, in as many processes as are asked for.

    Raises:
        ValueError: a new run has no data.
    """
    from ..checkpoints.runs import find_checkpoint
    from ..data.formats import expand_folders
    from ..engine.launch import launch
    from .running import run_process

    output = str(Path(args.output).expanduser())
    saved = Path(output) / "config.yaml"
    if args.resume and saved.is_file():
        _tell_unread(args, saved)
        launch(run_process, detectron2_arguments(args, str(saved), run_options(str(saved), output), resume=True))
        return
    args.val = expand_folders(args.val or _with_val(args.data), "val", "test")
    args.data = expand_folders(args.data, "train")
    if not args.data:
        raise ValueError("--data is needed: the data set to train on, such as coco:train.json:images")
    config_file = args.config_file or DEFAULT_CONFIG
    weights = find_checkpoint(args.weights) if args.weights else None
    options = run_options(config_file, output, train=args.data, test=args.val, weights=weights)
    options += choose_options(args, config_file, options, output)
    launch(run_process, detectron2_arguments(args, config_file, options, resume=args.resume))


def _tell_unread(args: argparse.Namespace, saved: Path) -> None:
    """Says which options a resumed run does not read: its config has what followed from them."""
    names = ("data", "val", "config_file", "weights", "minutes", "epochs")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
    if given:
        logger.warning(f"The run is resumed with the settings in {saved}; not read: {', '.join(given)}")


def _with_val(names: Sequence[str]) -> list[str]:
    """The folders among the names, if all are folders with validation images."""
    from ..data.formats import find_splits

    all_have = all(Path(name).expanduser().is_dir() and "val" in find_splits(name) for name in names)
    return list(names) if all_have else []


def choose_options(args: argparse.Namespace, config_file: str, options: Sequence[str], output: str) -> list[str]:
    """Options for what the command line leaves open: all settings without a config, otherwise the length alone.

    Args:
        args: of the command line.
        config_file: of the run.
        options: of the run so far.
        output: folder of the run, for its log.

    Raises:
        OSError, ValueError: the data cannot be used, or the command line contradicts itself.
    """
    if args.config_file and args.minutes is None and args.epochs is None:
        return []
    if "SOLVER.MAX_ITER" in args.opts[::2] and (args.minutes, args.epochs) != (None, None):
        raise ValueError("--minutes and --epochs set SOLVER.MAX_ITER: leave out one of the two")
    from ..config_reading import is_lazy_config, read_config
    from ..engine.process import set_up_logging
    from ..engine.run_length import choose_length, choose_training
    from ..engine.small_data import as_options

    if "LOCAL_RANK" in os.environ:
        raise ValueError(
            "under torchrun each process would choose its own settings: give --config-file, and no --minutes"
        )
    if is_lazy_config(config_file):
        raise ValueError("--minutes and --epochs are for yaml configs: of a lazy config set train.max_iter")
    set_up_logging(output)

    def read(chosen: Sequence[str]) -> Any:
        return read_config(config_file, [*options, *chosen, *args.opts])

    length: dict[str, Any] = {"minutes": args.minutes, "epochs": args.epochs, "processes": max(1, args.num_gpus)}
    if args.config_file:
        choices = choose_length(read([]), **length)
    else:
        if "SOLVER.MAX_ITER" in args.opts[::2]:
            length["iterations"] = read([]).SOLVER.MAX_ITER
        elif args.epochs is None:
            length["minutes"] = args.minutes or DEFAULT_MINUTES
        choices = choose_training(read, args.data, args.val, **length)
    for choice in choices:
        logger.info(f"Chosen: {choice}")
    return as_options(choices)


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number
