"""How commands end when something is wrong: with one line that says what, and what to do."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What wrong input, a missing file or a full disk can raise. Anything else is a fault of the program.
EXPECTED_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, FloatingPointError)
#: What to do about a file that could run code, where the command has this option.
TRUST_REMEDY = "if you trust where the file comes from, use --trust-checkpoint"


def add_traceback_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--traceback``, which :func:`one_line_errors` is given."""
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error was raised")


@contextmanager
def one_line_errors(show_traceback: bool) -> Iterator[None]:
    """Turns an error into one line on stderr and the end of the process, with exit status 1.

    Args:
        show_traceback: whether the stack trace precedes the line; that of an unexpected error always does.

    Raises:
        SystemExit: in place of any other exception.
    """
    try:
        yield
    except Exception as error:
        if show_traceback or not isinstance(error, EXPECTED_ERRORS):
            traceback.print_exc()
        print(f"error: {describe(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error


def describe(error: BaseException) -> str:
    """An error in one line, also those that have no message or whose message needs their type."""
    if isinstance(error, ModuleNotFoundError) and error.name == "detectron2":
        return "detectron2 is missing: dsrcnn install-detectron2 installs it"
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    message, raised_in = _without_trace(message)
    line = " ".join(message.split())
    if not line or not isinstance(error, EXPECTED_ERRORS):
        line = f"{type(error).__name__}{f': {line}' if line else ''}"
    if not raised_in:
        raised_in = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return line if _is_for_users(error, raised_in) else f"{line} (--traceback shows where)"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def import_extra(name: str, extra: str) -> Any:
    """Imports a package that only some uses need.

    Raises:
        ImportError: it is not installed; says which extra brings it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} is needed: pip install 'dynamic-sparse-rcnn[{extra}]'") from error


def _without_trace(message: str) -> tuple[str, list[str]]:
    """Takes the stack trace out of a message: PyTorch puts that of a loader's process before what it has raised.

    Returns:
        The message that was raised first, and the files of the trace; the message as it is if it has none.
    """
    _, header, trace = message.rpartition("Traceback (most recent call last):\n")
    if not header:
        return message, []
    said = "\n".join(line for line in trace.splitlines() if not line.startswith(" "))
    return said.partition(": ")[2] or said, re.findall(r'^  File "(.+)", line ', trace, re.MULTILINE)


def _is_for_users(error: BaseException, raised_in: Sequence[str]) -> bool:
    """Whether the message is: this package raised the error, or the system did."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    return bool(raised_in) and Path(raised_in[-1]).is_relative_to(Path(__file__).parent)
