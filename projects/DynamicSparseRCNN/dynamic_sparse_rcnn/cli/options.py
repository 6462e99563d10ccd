"""Options that several sub-commands have, and how those of detectron2's runs follow from them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DATA_HELP = "a folder, coco:JSON:FOLDER, ..; repeatable"


def add_command(subparsers: Subparsers, name: str, usage: str, description: str) -> argparse.ArgumentParser:
    """A sub-command's parser.

    Args:
        subparsers: of ``dsrcnn``.
        name: of the sub-command.
        usage: what follows the name on the command line.
        description: for ``--help``. Its first line is the help in the list of commands.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        usage=f"dsrcnn {name} {usage}",
        help=description.splitlines()[0].rstrip("."),
        description=description,
        formatter_class=HelpFormatter,
    )
    return parser


def path_of(text: str) -> Path:
    """A path, for argparse; ``~`` is the home folder, also where no shell has replaced it."""
    return Path(text).expanduser()


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Options with their help on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds what trainings and evaluations have in common, and the positional ``KEY VALUE`` pairs."""
    parser.add_argument("--config-file", metavar="FILE", help="a path, or a name in the model zoo")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes, also on CPUs")
    add_trust_option(parser)
    add_opts(parser)


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--import``."""
    text = "module of yours to import first; repeatable"
    parser.add_argument("--import", action="append", default=[], dest="imports", metavar="MODULE", help=text)


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust-checkpoint``."""
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="run code that a checkpoint or its config may hold"
    )


def add_opts(parser: argparse.ArgumentParser) -> None:
    """Adds the positional ``KEY VALUE`` pairs."""
    parser.add_argument("opts", nargs="*", help=argparse.SUPPRESS)


def detectron2_arguments(
    args: argparse.Namespace, config_file: str, options: Sequence[str], **others: bool
) -> argparse.Namespace:
    """What detectron2's command line would have given, for a run.

    Args:
        args: of :func:`add_run_options`, and ``--import``.
        config_file: of the run.
        options: that change the config, before those of the command line, which have the last word.
        others: ``resume`` and ``eval_only``, where they are not False.
    """
    from detectron2.engine import default_argument_parser

    result = default_argument_parser().parse_args(["--num-gpus", str(args.num_gpus)])
    given = {"imports": args.imports, "trust_checkpoint": args.trust_checkpoint, "traceback": args.traceback}
    vars(result).update(given | others, config_file=config_file, opts=[*options, *args.opts])
    return result


def run_options(
    config_file: str,
    output: str,
    *,
    train: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    weights: str | None = None,
) -> list[str]:
    """The options that make a config, yaml or lazy, that of a run; what is None stays as the config has it.

    Args:
        config_file: whose kind decides.
        output: the run's folder.
        train: data sets to train on.
        test: data sets to evaluate on; without any, a training has no evaluation.
        weights: a checkpoint.

    Raises:
        ValueError: a lazy config is given several data sets of a kind.
    """
    from ..config_reading import is_lazy_config

    if not is_lazy_config(config_file):
        keys = {"OUTPUT_DIR": output, "DATASETS.TRAIN": train, "DATASETS.TEST": test, "MODEL.WEIGHTS": weights}
        return _pairs({key: value for key, value in keys.items() if value is not None})
    lazy: dict[str, str | None] = {"train.output_dir": output}
    for kind, names in (("train", train), ("test", test)):
        if names and len(names) > 1:
            raise ValueError(f"A lazy config takes one data set to {kind} on, not {len(names)} ({', '.join(names)})")
        if names is not None:
            lazy[f"dataloader.{kind}.dataset.name"] = names[0] if names else None
    if weights is not None:
        lazy["train.init_checkpoint"] = weights
    return [f"{key}={_quoted(value)}" for key, value in lazy.items()]


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """Values as a yaml config's options have them."""
    return [
        part for key, value in values.items() for part in (key, value if isinstance(value, str) else repr(tuple(value)))
    ]


def _quoted(value: str | None) -> str:
    """A value in the grammar of a lazy config's overrides."""
    if value is None:
        return "null"
    # Of backslashes, those before a quotation mark alone escape something.
    escaped = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"
