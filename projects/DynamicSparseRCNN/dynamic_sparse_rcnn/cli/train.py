"""``dsrcnn train``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import DATA_HELP, Subparsers, add_command, add_run_options, detectron2_arguments, run_options

#: For own data, small enough for a CPU.
DEFAULT_CONFIG = "small/sparse_rcnn_R_18_FPN_50pro_256px.yaml"
_DESCRIPTION = """Train a detector.
Checkpoints, config.yaml, log.txt and TensorBoard's scalars go to --output.
With --val the last line is "bbox AP .. AP50 .. AP75 ..".
KEY VALUE pairs change the config (of a lazy config: KEY=VALUE)."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "train", "--data NAME --output DIR [OPTION ..] [KEY VALUE ..]", _DESCRIPTION)
    parser.add_argument("--data", action="append", default=[], metavar="NAME", help=DATA_HELP)
    parser.add_argument("--val", action="append", default=[], metavar="NAME", help="to evaluate on, likewise")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run")
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
    from ..engine.launch import launch
    from .running import run_process

    output = str(Path(args.output).expanduser())
    saved = Path(output) / "config.yaml"
    resumes = args.resume and saved.is_file()
    if not (args.data or resumes):
        raise ValueError("--data is needed: the data set to train on, such as coco:train.json:images")
    config_file = args.config_file or (str(saved) if resumes else choose_config(args))
    options = run_options(
        config_file,
        output,
        train=args.data or None,
        test=args.val if args.val or not resumes else None,
        weights=find_checkpoint(args.weights) if args.weights else None,
    )
    launch(run_process, detectron2_arguments(args, config_file, options, resume=args.resume))


def choose_config(args: argparse.Namespace) -> str:
    """The config of a training for which none is named."""
    return DEFAULT_CONFIG
