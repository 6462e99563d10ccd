"""Lists what the package can tell a user: the message of every error, of every end of a command, and every warning.

python tests/list_messages.py [error|warning]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "projects/DynamicSparseRCNN/dynamic_sparse_rcnn"
_LOGGED = ("warning", "error", "log_first_n")


@dataclass(frozen=True)
class Message:
    """Where it is, which exception or function has it, and its text, in which ``{...}`` stand for values."""

    place: str
    kind: str
    text: str

    @property
    def is_error(self) -> bool:
        return self.kind not in _LOGGED


def list_messages(folder: Path = PACKAGE) -> Iterator[Message]:
    """All messages, in the order of files and lines; the text is empty where the exception is made elsewhere."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = _message_call(node)
            if call is not None:
                place = f"{file.relative_to(folder)}:{call.lineno}"
                yield Message(place, _name(call.func), " ".join(map(_text, call.args)))


def _message_call(node: ast.AST) -> ast.Call | None:
    """The call that makes an exception which is raised, or logs something that matters."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return node.exc
    if isinstance(node, ast.Call) and _name(node.func) in _LOGGED:
        return node
    return None


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)


def _text(node: ast.expr) -> str:
    """A string as it is written, with expressions in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    return f"{{{ast.unparse(node)}}}"


if __name__ == "__main__":
    for message in list_messages():
        if not sys.argv[1:] or (sys.argv[1] == "error") == message.is_error:
            print(f"{message.place} {message.kind}: {message.text}")
