"""The reference of this project's config keys, read from the comments of config.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

CONFIG_FILE = Path(__file__).parents[1] / "projects/DynamicSparseRCNN/dynamic_sparse_rcnn/config.py"
_ENTRY_POINT = "add_dynamic_sparse_rcnn_config"
# Names of keys, as the comments write them: MODEL.PIXEL_MEAN, TOP_Q, MATCHER_REGISTRY.
_KEY_IN_TEXT = re.compile(r"\b[A-Z][A-Za-z]*(?:\.[A-Za-z][A-Za-z_]*)+\b|\b[A-Z]+(?:_[A-Z]+)+\b")


@dataclass(frozen=True)
class ConfigKey:
    """A key as the source defines it.

    Attributes:
        name: in full, such as ``MODEL.SparseRCNN.DLA.K``.
        default: Python expression; empty for a section, which has keys instead of a value.
        text: the comment above it.
    """

    name: str
    default: str
    text: str

    @property
    def section(self) -> str:
        """The part of the name before its last dot; a section's own name for a section."""
        return self.name.rpartition(".")[0] if self.default else self.name


def read_config_keys(source: str) -> list[ConfigKey]:
    """The keys and sections of a module whose ``add_dynamic_sparse_rcnn_config`` adds them, in its order.

    A comment belongs to the assignment below it and to those that follow without a blank line or another comment.

    Args:
        source: text of the module.
    """
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return list(_read_function(functions, _ENTRY_POINT, "", source.splitlines()))


def _read_function(
    functions: dict[str, ast.FunctionDef], name: str, prefix: str, lines: list[str]
) -> Iterator[ConfigKey]:
    """Yields the keys that a function adds to its first argument, the config node ``prefix``."""
    argument = functions[name].args.args[0].arg
    text, end = "", 0
    for statement in functions[name].body:
        comment = _comment_above(lines, statement.lineno)
        text = comment or (text if statement.lineno == end + 1 else "")
        end = statement.end_lineno or statement.lineno
        if isinstance(statement, ast.Assign):
            path = _path_of(statement.targets[0], argument, prefix)
            if path is not None:
                yield from _read_assignment(path, statement.value, text)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            call = statement.value
            if isinstance(call.func, ast.Name) and call.func.id in functions:
                path = _path_of(call.args[0], argument, prefix)
                assert path is not None
                yield from _read_function(functions, call.func.id, path, lines)


def _read_assignment(path: str, value: ast.expr, text: str) -> Iterator[ConfigKey]:
    """One key; or, for a ``CfgNode``, the section and the keys of its dict."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "CfgNode":
        yield ConfigKey(path, "", text)
        for argument in value.args:
            defaults: dict[str, object] = ast.literal_eval(argument)
            for key, default in defaults.items():
                yield ConfigKey(f"{path}.{key}", repr(default), text)
    else:
        yield ConfigKey(path, ast.unparse(value), text)


def _path_of(node: ast.expr, argument: str, prefix: str) -> str | None:
    """The name of the key that an expression such as ``node.DLA.K`` stands for; None if it is not one."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id != argument:
        return None
    return ".".join([*([prefix] if prefix else []), *reversed(attributes)])


def _comment_above(lines: list[str], number: int) -> str:
    """The block of comment lines that ends above line ``number`` (counted from 1), as one line."""
    first = number - 1
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip().lstrip("#").strip() for line in lines[first : number - 1])


def render_config_reference(keys: list[ConfigKey]) -> str:
    """Markdown: a heading for each section, then a definition list of its keys; keys with one comment share it."""
    sections: dict[str, list[ConfigKey]] = {}
    for key in keys:
        sections.setdefault(key.section, []).append(key)
    parts = []
    for name, members in sections.items():
        parts.append(f"## `{name}` {{ #{name} }}" if name else "## Top level")
        valued = [key for key in members if key.default]
        said = {"", *(key.text for key in valued)}
        parts += [_as_markdown(key.text) for key in members if not key.default and key.text not in said]
        for text, group in groupby(valued, lambda key: key.text):
            terms = "\n".join(f"`{key.name}` = `{key.default}` {{ #{key.name} }}" for key in group)
            parts.append(f"{terms}\n:   {_as_markdown(text)}")
    return "\n\n".join(parts) + "\n"


def _as_markdown(text: str) -> str:
    """A comment with the names of keys as code and nothing else that Markdown would interpret."""
    pieces, end = [], 0
    for match in _KEY_IN_TEXT.finditer(text):
        pieces += [_escape(text[end : match.start()]), f"`{match[0]}`"]
        end = match.end()
    return "".join([*pieces, _escape(text[end:])])


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", text)
