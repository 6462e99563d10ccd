"""The benchmark of exported detectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import speed
from exporting import compare_exports
from one_stage import one_stage_config


@pytest.mark.slow
def test_eager_and_exported_detectors_are_compared(tmp_path):
    pytest.importorskip("onnxruntime")
    workload = replace(speed.DEMO, config=one_stage_config(tmp_path), height=64, width=64, proposals=6)
    whole, inner, memory = compare_exports(workload, repeats=1, ways=["ONNX Runtime"])
    for comparison in (whole, inner, memory):
        assert list(comparison.values) == ["eager", "ONNX Runtime"]
        assert all(value > 0 for value in comparison.values.values())
    assert whole.unit == inner.unit == "ms" and memory.unit == "MB"
    # It does without PyTorch.
    assert memory.values["ONNX Runtime"] < memory.values["eager"]
