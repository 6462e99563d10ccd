"""How commands end when something is wrong: with one line that says what, and what to do."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What wrong input, a missing file or a full disk can raise. Anything else is a fault of the program.
EXPECTED_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, FloatingPointError)


class ReportedError(SystemExit):
    """The end of a process whose error has been printed."""


def add_traceback_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--traceback``, which :func:`one_line_errors` is given."""
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error was raised")


@contextmanager
def one_line_errors(show_traceback: bool) -> Iterator[None]:
    """Turns an error into one line on stderr and the end of the process, with exit status 1.

    Args:
        show_traceback: whether the stack trace precedes the line; that of an unexpected error always does.

    Raises:
        ReportedError: in place of any other exception.
    """
    try:
        yield
    except Exception as error:
        if show_traceback or not isinstance(error, EXPECTED_ERRORS):
            traceback.print_exc()
        print(f"error: {describe(error)}", file=sys.stderr, flush=True)
        raise ReportedError(1) from error


def describe(error: BaseException) -> str:
    """An error in one line, also those that have no message or whose message needs their type."""
    if isinstance(error, ModuleNotFoundError) and error.name == "detectron2":
        return "detectron2 is missing: dsrcnn install-detectron2 installs it"
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = " ".join(message.split())
    if not line or not isinstance(error, EXPECTED_ERRORS):
        line = f"{type(error).__name__}{f': {line}' if line else ''}"
    return line if _is_ours(error) else f"{line} (--traceback shows where)"


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error, whose message is then meant for users, or the system did."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
