"""The command ``dsrcnn``: a module for each sub-command.

A module has ``add_parser(subparsers)``, which names its function ``run(args)``. What it does is elsewhere in the
package, and is imported when it runs: ``--help`` takes no time.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ..errors import add_traceback_option, one_line_errors
from .options import HelpFormatter, add_import_option

#: The modules, in the order of ``dsrcnn --help``.
COMMANDS = (
    *("train", "eval", "predict", "app", "report", "inspect", "visualize"),
    *("export", "convert", "convert-data", "analyze", "install-detectron2"),
)

_DESCRIPTION = """Sparse R-CNN and Dynamic Sparse R-CNN. See dsrcnn COMMAND --help.
  dsrcnn train --data coco:train.json:images --output output/mine
  dsrcnn predict photos/ --weights output/mine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command.

    Args:
        argv: without the name of the program; default: those of this process.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: the command failed (status 1, after one line on stderr) or was called wrongly (status 2).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="dsrcnn", description=_DESCRIPTION, formatter_class=HelpFormatter)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f".{name.replace('-', '_')}", __name__).add_parser(subparsers)
        if name != "install-detectron2":
            add_import_option(subparsers.choices[name])
        add_traceback_option(subparsers.choices[name])
    if arguments and arguments[0] in subparsers.choices:
        # Options may stand before, between and behind the positional arguments.
        args = subparsers.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    else:
        args = parser.parse_args(arguments)
    with one_line_errors(args.traceback):
        if getattr(args, "imports", ()):
            from ..engine.launch import import_modules

            import_modules(args)
        args.run(args)
    return 0
