"""Disks that are soon full, where one may mount them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """Within, ``folder`` is a disk in memory of that size, as in ``20m``; where that is forbidden, skips the test."""
    folder.mkdir()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounting.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # logs may still be open


def remount(folder: Path, options: str) -> None:
    """Changes a mounted disk: ``ro`` makes it read-only, ``size=40m`` larger."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
