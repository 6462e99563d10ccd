"""MkDocs hooks: pages that are generated from the code, formulas as MathML, Sphinx roles in docstrings."""

from __future__ import annotations

import contextlib
import html
import io
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from dynamic_sparse_rcnn.cli import COMMANDS, main

sys.path.insert(0, str(Path(__file__).parent))

from config_reference import CONFIG_FILE, read_config_keys, render_config_reference

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):(?=<code>)")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the generated parts of a page."""
    if "{{ config_keys }}" in markdown:
        keys = read_config_keys(CONFIG_FILE.read_text(encoding="utf-8"))
        markdown = markdown.replace("{{ config_keys }}", render_config_reference(keys))
    if "{{ commands }}" in markdown:
        helps = [f"## {name} {{ #{name} }}\n\n```text\n{_help_of(name)}\n```" for name in COMMANDS]
        markdown = markdown.replace("{{ commands }}", "\n\n".join(helps))
    return markdown


def _help_of(command: str) -> str:
    """What ``dsrcnn COMMAND --help`` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([command, "--help"])
    return printed.getvalue().strip()


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML, which browsers draw without a script, and removes Sphinx roles from docstrings."""
    return _FORMULA.sub(_as_mathml, _ROLE.sub("", content))


def _as_mathml(match: re.Match[str]) -> str:
    return convert(html.unescape(match[2]), display="inline" if match[1] == "span" else "block")
