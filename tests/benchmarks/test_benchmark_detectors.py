"""The benchmark of what options cost a detector."""

from __future__ import annotations

import sys
from pathlib import Path

import detectors
import pytest

CONFIG = Path(__file__).parents[2] / "configs/shapes/sparse_rcnn_R_18_FPN_20pro.yaml"


def test_the_table_has_sizes_and_times_without_and_with_the_options(monkeypatch, capsys):
    flags = ["--images", "1", "--size", "64", "96", "--repeats", "1", "--config-file", str(CONFIG)]
    options = ["MODEL.PROPOSAL_GENERATOR.NAME", "DynamicProposalGenerator"]
    monkeypatch.setattr(sys, "argv", ["detectors.py", *flags, *options])
    detectors.main()
    lines = [line.rsplit(maxsplit=3) for line in capsys.readouterr().out.splitlines()[2:]]
    table = {name: [float(value) for value in values] for name, *values in lines}
    assert list(table) == ["parameters, M", "FLOPs, G", "training step, ms", "inference, ms"]
    for without, with_options, ratio in table.values():
        assert ratio == pytest.approx(with_options / without, rel=0.01)
    # Three more experts for 20 proposals; convolutions of 128, 256 and 384 channels; 900 cells to 1500 to 4 x 20.
    more = 3 * 20 * (4 + 128) + 10 * (128 + 256 + 384) + 901 * 1500 + 1501 * 80
    without, with_options, _ = table["parameters, M"]
    assert with_options - without == pytest.approx(more / 1e6, abs=2e-3)
