"""``dsrcnn report``."""

from __future__ import annotations

import argparse

from .options import Subparsers, add_command, add_trust_option, path_of

_DESCRIPTION = """Report a run in an HTML file.
Losses, AP by class, stage and size, thresholds, confusions, the worst images.
RUN is the folder of a run, finished or not, or of an evaluation. Several runs
are laid over each other. The file needs no network."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "report", "RUN [RUN ..] [OPTION ..]", _DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=path_of, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=path_of, metavar="FILE", help="default: report.html or comparison.html in RUN")
    parser.add_argument("--evaluate", action="store_true", help="run the detector first, for AP after each stage")
    add_trust_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the report."""
    from detectron2.utils.logger import setup_logger

    from ..report.writing import write_comparison

    setup_logger(name="dynamic_sparse_rcnn")
    if args.evaluate:
        from ..report.stages import evaluate_run

        setup_logger(name="detectron2")
        for folder in args.runs:
            evaluate_run(folder, args.trust_checkpoint)
    name = "report.html" if len(args.runs) == 1 else "comparison.html"
    print(f"Wrote {write_comparison(args.runs, args.output or args.runs[0] / name)}")
