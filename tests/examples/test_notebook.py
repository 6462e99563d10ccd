"""The notebook runs from its first cell to its last, on the data that it generates."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples/own_data.ipynb"


@pytest.fixture
def command(tmp_path, monkeypatch) -> None:
    """``dsrcnn`` on the path, of this interpreter."""
    script = tmp_path / "bin/dsrcnn"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dynamic_sparse_rcnn.cli "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.slow
def test_the_notebook_runs(command, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = notebook.cells[1]
    assert settings.source.startswith('LENGTH = "--minutes 10"')
    settings.source = settings.source.replace("--minutes 10", "--epochs 0.1")
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.search(r"^bbox AP \S+ AP50 \S+ AP75 \S+\s*$", printed, re.MULTILINE)
    # Samples, detections and assignment.
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert (tmp_path / "output/own/report.html").is_file()


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_links_of_the_notebook_lead_to_files():
    text = "\n".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 4
    assert [link for link in links if not (NOTEBOOK.parent / link).is_file()] == []
