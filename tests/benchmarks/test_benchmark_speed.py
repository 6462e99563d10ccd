"""The benchmark of speed: times, parts, memory and what it leaves."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import cv2
import pytest
import speed
import torch
from detectron2.modeling import build_model
from speed_report import Comparison, table
from timing import Stopwatch, peak_memory, time_alternating
from torch import nn


def work(seconds: float) -> None:
    """Keeps the processor busy."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class Working(nn.Module):
    """Takes its time."""

    def __init__(self, seconds: float, *inner: nn.Module) -> None:
        super().__init__()
        self.seconds = seconds
        self.inner = nn.ModuleList(inner)

    def forward(self) -> None:
        work(self.seconds)
        for module in self.inner:
            module()


def test_variants_take_turns_at_being_first():
    order = list[str]()
    time_alternating({name: lambda name=name: order.append(name) for name in "abc"}, 2, "cpu")
    assert "".join(order) == "abcbcacab"


def test_variants_are_timed_after_a_round_to_warm_up():
    calls = list[str]()
    medians = time_alternating({"a": lambda: calls.append("a"), "b": lambda: work(0.01)}, 3, "cpu")
    assert len(calls) == 4
    assert list(medians) == ["a", "b"] and medians["b"] >= 0.01


def test_a_stopwatch_adds_up_the_passes_of_modules_and_leaves_them_as_they_were():
    inner = Working(0.02)
    outer = Working(0.01, inner, inner)
    watch = Stopwatch("cpu")
    with watch.timing_modules({"inner": [inner], "outer": [outer]}):
        outer()
    assert 0.04 < watch.seconds["inner"] < watch.seconds["outer"] - 0.009
    before = dict(watch.seconds)
    outer()
    assert watch.seconds == before


def test_peak_memory_is_the_most_that_is_held_at_once_beyond_what_was_there():
    before = torch.zeros(1000, 1000)

    def call() -> None:
        a = before + 1  # 4 MB
        b = torch.cat([a, a])  # 12 MB
        del a, b
        torch.zeros(2, 1000, 1000)  # 8 MB

    assert peak_memory(call, "cpu") == 12_000_000


def test_ratios_are_medians_of_rounds_so_that_a_slow_one_does_not_count():
    comparison = Comparison("detector", "step", "ms", {"plain": [10, 100, 12], "ours": [5, 50, 7]})
    assert comparison.values == {"plain": 12, "ours": 7}
    assert comparison.ratios == {"plain": 1, "ours": 0.5}
    assert "0.500" in table([comparison]).splitlines()[-1]


def test_it_leaves_a_table_a_json_file_and_a_plot(monkeypatch, capsys, tmp_path):
    flags = ["--images", "1", "--height", "64", "--width", "64", "--repeats", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *flags])
    monkeypatch.setattr(speed, "GROWTH", {"images": (1, 2), "side": (1,)})
    speed.main()
    content = json.loads((tmp_path / "speed.json").read_text())
    found = {entry["name"]: entry for entry in content["comparisons"]}
    parts = ["backbone", "generator", "head", "matching", "loss", "forward, else", "backward", "optimizer"]
    assert list(found) == [
        *("training step", "peak memory of a training step", "inference"),
        "inference without pre- and post-processing",
        *("data (one process)", *parts, "training step in another way", "its peak memory"),
        *("training step of a method", "inference of a method"),
        *("images = 1", "images = 2", "side = 64"),
    ]
    for entry in found.values():
        assert all(value >= 0 for value in entry["medians"].values()), entry["name"]
    assert list(found["training step of a method"]["medians"]) == ["static", "DLA", "DPG", "DLA + DPG"]
    assert cv2.imread(str(tmp_path / "speed.png")) is not None
    output = capsys.readouterr().out
    assert "case 5 of 5: scaling" in output and "side = 64" in output.splitlines()[-3]


def test_trainings_on_a_cpu_differ_in_precision_and_memory_format(monkeypatch):
    made = []
    make = speed.Subject.make

    def spy(workload, options=()):
        made.append(make(workload, options))
        return made[-1]

    monkeypatch.setattr(speed.Subject, "make", spy)
    workload = replace(speed.LITE0, images=2, height=64, width=64, precision="bfloat16")
    (comparison,) = speed.compare_cpu_training(workload, 1)
    assert list(comparison.values) == ["plain", "ours", "channels last", "bfloat16", "bfloat16, channels last"]
    assert [subject.workload.dtype for subject in made] == [None, None, torch.bfloat16, torch.bfloat16]
    stems = [subject.model.backbone.bottom_up.model.conv_stem.weight for subject in made]
    assert [stem.is_contiguous() for stem in stems] == [True, False, True, False]


@pytest.mark.parametrize("name", ["plain", "ours"])
def test_the_time_of_matching_counts_as_matching_alone(monkeypatch, name):
    subject = speed.make_pair(replace(speed.DEMO, images=1, height=64, width=64))[name]
    matcher = subject.model.get_submodule("criterion.matcher")
    match = matcher.forward
    monkeypatch.setattr(matcher, "forward", lambda *args: work(0.5) or match(*args))
    parts = speed.time_parts(subject)
    assert parts["matching"] >= 0.5 > parts["loss"] > 0
    assert parts["forward, else"] < 0.5


@pytest.mark.parametrize("way", speed.WAYS.values(), ids=speed.WAYS)
def test_other_ways_give_the_same_losses_and_leave_the_detector_as_it_was(tiny_cfg, make_inputs, way):
    detector, inputs = build_model(tiny_cfg), make_inputs([3, 2])
    before = dict(vars(detector)), dict(vars(detector.head)), detector.head.box_pooler
    expected = detector(inputs)
    with way(detector):
        losses = detector(inputs)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert (dict(vars(detector)), dict(vars(detector.head)), detector.head.box_pooler) == before


def test_a_workload_grows_in_one_direction():
    grown = speed.grow(speed.DEMO, "side", 2)
    assert (grown.height, grown.width, grown.images) == (256, 256, speed.DEMO.images)
    assert speed.grow(speed.DEMO, "images", 0.01).images == 1
