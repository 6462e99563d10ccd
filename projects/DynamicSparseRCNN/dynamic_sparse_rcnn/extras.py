"""Packages that only some uses need, see the extras of setup.py."""

from __future__ import annotations

import importlib
from typing import Any


def import_extra(name: str, extra: str) -> Any:
    """Imports a package.

    Raises:
        ImportError: it is not installed; says which extra brings it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} is needed: pip install 'dynamic-sparse-rcnn[{extra}]'") from error
