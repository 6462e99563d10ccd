"""What the documents mention exists: commands and their options, config keys, files, links."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from dynamic_sparse_rcnn import add_dynamic_sparse_rcnn_config, cli, model_zoo

ROOT = Path(__file__).parents[2]
_OTHERS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "projects/DynamicSparseRCNN/README.md")
DOCUMENTS = sorted([*(ROOT / file for file in _OTHERS), *(ROOT / "docs").rglob("*.md")])
TEXTS = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in DOCUMENTS}
each_document = pytest.mark.parametrize("name", TEXTS)


def code_of(text: str) -> list[str]:
    """Lines of code blocks, with continuation lines joined, and inline code."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]


def commands_in(name: str) -> Iterator[list[str]]:
    """Arguments of each complete ``dsrcnn`` command."""
    for code in code_of(TEXTS[name]):
        command = re.search(r"(?:^|[$ ])(?:dsrcnn|-m dynamic_sparse_rcnn\.cli) (.*)", code.partition("  #")[0])
        if command and ".." not in command[1].split():
            yield shlex.split(command[1])


def known_keys() -> set[str]:
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)

    def names(node: CfgNode, prefix: str) -> Iterator[str]:
        for name, value in node.items():
            yield prefix + name
            if isinstance(value, CfgNode):
                yield from names(value, f"{prefix}{name}.")

    # What is registered as deprecated is known too.
    return {*names(cfg, ""), *cfg.__dict__[CfgNode.DEPRECATED_KEYS]}


@each_document
def test_commands_have_the_options_that_they_are_given(name, monkeypatch, capsys):
    for command in cli.COMMANDS:
        module = importlib.import_module(f"dynamic_sparse_rcnn.cli.{command.replace('-', '_')}")
        monkeypatch.setattr(module, "run", lambda args: None)
    monkeypatch.setattr("dynamic_sparse_rcnn.engine.launch.import_modules", lambda args: None)
    for arguments in commands_in(name):
        if arguments[0] == "COMMAND" or len(arguments) == 1:
            continue
        status = 0
        try:
            cli.main(arguments)
        except SystemExit as end:
            status = end.code
        assert status == 0, f"dsrcnn {shlex.join(arguments)}: {capsys.readouterr().err}"


@each_document
def test_config_keys_exist(name):
    known = known_keys()
    sections = ("", "MODEL.", "MODEL.SparseRCNN.")
    mentioned = {
        key
        for code in code_of(TEXTS[name])
        for key in re.findall(
            r"(?<![\w./])(?:[A-Z]+|SparseRCNN)(?:\.[A-Za-z_0-9]*[A-Z_][A-Za-z_0-9]*)+(?![\w.*{])", code
        )
    }
    assert {key for key in mentioned if not any(section + key in known for section in sections)} == set()


@each_document
def test_files_exist(name):
    pattern = r"(?<![\w/.-])((?:tools|benchmarks|tests|configs|docs|examples)/[\w/.-]+\.\w+)"
    missing = [
        file for code in code_of(TEXTS[name]) for file in re.findall(pattern, code) if not (ROOT / file).exists()
    ]
    assert missing == []


@each_document
def test_configs_exist(name):
    pattern = r"(?<![\w/.-])((?:coco|small|shapes|voc|lazy)/[\w.-]+\.(?:yaml|py))"
    for code in code_of(TEXTS[name]):
        for config in re.findall(pattern, code):
            assert model_zoo.get_config_file(config)


@each_document
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"^```.*?^```", "", TEXTS[name], flags=re.M | re.S))
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (ROOT / name).parent.joinpath(link).exists()] == []
    assert [link for link in links if link.startswith("http://")] == []


def test_the_documents_are_found():
    assert len(TEXTS) > 25
    assert sum(1 for name in TEXTS for _ in commands_in(name)) > 15


def test_every_command_is_in_the_reference():
    from site_hooks import on_page_markdown

    page = on_page_markdown("{{ commands }}", page=None, config=None, files=None)
    for command in cli.COMMANDS:
        assert f"## {command} " in page and f"usage: dsrcnn {command} " in page


def test_every_extra_is_explained():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = re.findall(r'^        "(\w+)": ', setup[setup.index("extras_require") :], re.MULTILINE)
    explained = TEXTS["docs/start/install.md"]
    assert len(extras) > 5
    assert [extra for extra in extras if f"`{extra}`" not in explained] == []
    offered = {
        extra
        for text in TEXTS.values()
        for names in re.findall(r"install '\.\[([\w,]+)\]'", text)
        for extra in names.split(",")
    }
    assert offered <= set(extras)
