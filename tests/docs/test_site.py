"""The documentation builds without a warning, is complete, and needs nothing from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What loads, as opposed to what links.
_LOADING = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("video", "src"), ("source", "src")}


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built with --strict: dead links, dead anchors, pages that the navigation lacks and unknown names are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, str]:
    return {str(file.relative_to(site)): file.read_text(encoding="utf-8") for file in site.rglob("*.html")}


def test_every_page_is_built(pages):
    sources = {file.relative_to(ROOT / "docs").with_suffix(".html") for file in (ROOT / "docs").rglob("*.md")}
    assert {str(source) for source in sources} <= set(pages)


def test_pages_load_nothing_from_elsewhere(pages):
    loaded = [
        (page, attributes[name])
        for page, text in pages.items()
        for tag, attributes in Elements(text).found
        for name in attributes
        if (tag, name) in _LOADING and "//" in (attributes[name] or "")
    ]
    assert loaded == []


def test_images_have_alternative_texts(pages):
    images = [(page, a) for page, text in pages.items() for tag, a in Elements(text).found if tag == "img"]
    assert [(page, a["src"]) for page, a in images if len(a.get("alt") or "") < 10] == []


@pytest.mark.parametrize("leftover", ["{{", 'class="arithmatex"', ":class:<code>", ":func:<code>", ":meth:<code>"])
def test_nothing_is_left_of_the_markup(pages, leftover):
    assert [page for page, text in pages.items() if leftover in text] == []


def test_config_keys_have_anchors(pages):
    anchors = {attributes.get("id") for _, attributes in Elements(pages["reference/config.html"]).found}
    assert {"MODEL.SparseRCNN.DLA", "MODEL.SparseRCNN.DLA.SINKHORN_EPS", "SOLVER.ACCUMULATE_STEPS"} <= anchors
