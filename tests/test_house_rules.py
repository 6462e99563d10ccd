"""Rules that keep the project readable: sizes, directions of imports, types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "projects/DynamicSparseRCNN/dynamic_sparse_rcnn"
FILES = sorted([*PACKAGE.rglob("*.py"), *ROOT.glob("tools/*.py")])
MAX_FILE_LINES, MAX_BODY_LINES, MAX_ANY = 300, 40, 25
# What the modules of a folder do not import.
FORBIDDEN = {
    "data": ("modeling", "engine", "prediction", "deploy", "report", "cli"),
    "checkpoints": ("modeling", "engine", "prediction", "deploy", "report", "cli"),
    "modeling": ("engine", "prediction", "deploy", "report", "cli"),
    "engine": ("cli",),
    "prediction": ("cli",),
    "deploy": ("cli",),
    "report": ("cli",),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(node: ast.AST, public: bool = True) -> Iterator[tuple[Function, bool]]:
    """The functions and methods in a syntax tree, and whether they are public."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions_of(child, public and not child.name.startswith("_"))
        elif isinstance(child, Function):
            is_public = public and (not child.name.startswith("_") or child.name.endswith("__"))
            yield child, is_public
            yield from functions_of(child, False)
        else:
            yield from functions_of(child, public)


def body_lines(function: Function) -> int:
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return (function.end_lineno or 0) - first.lineno + 1


def imported_by(file: Path) -> set[str]:
    """Full names of what a module of the package imports, at its top or later."""
    inside = ["dynamic_sparse_rcnn", *file.relative_to(PACKAGE).parts]
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def count_any(function: Function) -> int:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    annotations = [*(argument.annotation for argument in every if argument), function.returns]
    nodes = [node for annotation in annotations if annotation for node in ast.walk(annotation)]
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)


def test_no_file_is_too_long():
    lengths = {str(file): len(file.read_text().splitlines()) for file in FILES}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_too_long():
    lengths = {
        f"{file.relative_to(ROOT)}:{function.lineno} {function.name}": body_lines(function)
        for file in FILES
        for function, _ in functions_of(ast.parse(file.read_text()))
    }
    assert {name: length for name, length in lengths.items() if length > MAX_BODY_LINES} == {}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder):
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for file in sorted((PACKAGE / folder).rglob("*.py"))
        for name in sorted(imported_by(file))
        if any(f"{name}.".startswith(f"dynamic_sparse_rcnn.{other}.") for other in FORBIDDEN[folder])
    ]
    assert wrong == []


def test_few_public_signatures_say_any():
    counts = {
        f"{file.relative_to(PACKAGE)}:{function.lineno} {function.name}": count_any(function)
        for file in sorted(PACKAGE.rglob("*.py"))
        for function, public in functions_of(ast.parse(file.read_text()))
        if public
    }
    assert sum(counts.values()) <= MAX_ANY, [name for name, count in counts.items() if count]


def test_the_rules_see_what_breaks_them(tmp_path, monkeypatch):
    source = (
        "from typing import Any\nfrom ..engine import run\n\ndef f(x: dict[str, Any], *y: Any) -> Any:\n    'Doc.'\n"
    )
    file = tmp_path / "modeling" / "long.py"
    file.parent.mkdir()
    file.write_text(source + "    x\n" * 41)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    ((function, public),) = functions_of(ast.parse(file.read_text()))
    assert (body_lines(function), count_any(function), public) == (41, 3, True)
    assert imported_by(file) == {"typing.Any", "dynamic_sparse_rcnn.engine.run"}
