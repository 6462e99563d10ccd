"""The tests of the method build hundreds of detectors."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode
from small_runs import use_slim_resnet_50


@pytest.fixture
def tiny_cfg(tiny_cfg: CfgNode) -> CfgNode:
    """The same detector with a backbone that is made in a quarter of the time."""
    return use_slim_resnet_50(tiny_cfg)
