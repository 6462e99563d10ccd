"""Sparse R-CNN and Dynamic Sparse R-CNN for detectron2.

The public names are those of :mod:`.api`. The first use of one of them, ``add_dynamic_sparse_rcnn_config`` among them,
imports PyTorch and detectron2 and registers the project's parts; importing the package alone takes no time.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(".api", __name__), name)
