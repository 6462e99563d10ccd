"""The report for a GPU runs in miniature on a CPU, and keeps to its time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import gpu_parts
import gpu_report
import pytest
import speed
from gpu_report import Part, plan, run_part
from one_stage import one_stage_config


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_all_parts_together_take_ten_minutes_at_most(tmp_path):
    parts = list(plan(tmp_path, "coco:train.json:images", miniature=False))
    assert sum(part.limit for part in parts) <= 600
    assert {part.name for part in parts} == {
        *("tests", "speed, float16", "speed, bfloat16", "matching", "compile", "graph", "export", "training")
    }
    scripts = [word for part in parts for word in part.command if word.startswith("benchmarks/")]
    assert scripts and all((gpu_report.ROOT / script).is_file() for script in scripts)


def test_a_part_that_takes_too_long_is_stopped_and_one_that_fails_is_told():
    stopped = run_part(Part("slow", python("import time; print('begun', flush=True); time.sleep(60)"), 5))
    assert stopped.state == "stopped" and stopped.seconds < 30 and "begun" in stopped.tail
    failed = run_part(Part("broken", python("raise ValueError('no such device')"), 60))
    assert failed.state == "failed" and "no such device" in failed.tail and not failed.numbers


def test_numbers_are_the_last_line_or_those_of_the_benchmark(tmp_path):
    assert run_part(Part("json", python("print('log'); print('{\"a, ms\": 1.5}')"), 60)).numbers == {"a, ms": 1.5}
    assert run_part(Part("text", python("print('3 passed')"), 60)).numbers == {"result": "3 passed"}
    entry = {"name": "step", "unit": "ms", "medians": {"ours": 2.0}, "ratios": {"ours": 0.5}}
    (tmp_path / "speed.json").write_text(json.dumps({"comparisons": [entry]}))
    assert run_part(Part("speed", python(""), 60, tmp_path)).numbers == {"step, ours, ms": "2.0 (0.500 x)"}


@pytest.mark.parametrize("part", ["matching", "compile", "graph"])
def test_parts_run_in_miniature(part):
    workload = replace(speed.DEMO, images=1, height=64, width=64, proposals=6)
    numbers = gpu_parts.PARTS[part](workload)
    assert len(numbers) >= 1 and all(value > 0 for value in numbers.values())


@pytest.mark.slow
def test_the_exported_detector_gives_the_same_scores_in_miniature(tmp_path):
    pytest.importorskip("onnxruntime")
    workload = replace(speed.DEMO, config=one_stage_config(tmp_path), images=1, height=64, width=64, proposals=6)
    numbers = gpu_parts.measure_export(workload)
    assert numbers["difference of scores"] < 1e-4


@pytest.mark.slow
def test_the_report_trains_and_is_written(shapes, tmp_path, monkeypatch, capsys):
    arguments = ["--miniature", "--data", shapes, "--only", "training", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", *arguments])
    gpu_report.main()
    (part,) = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert part["state"] == "done" and part["numbers"]["result"].startswith("bbox AP ")
    assert "training" in Path(tmp_path / "report.md").read_text() and "training" in capsys.readouterr().out


def test_without_a_gpu_it_says_what_can_be_done(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_report.py"])
    with pytest.raises(SystemExit):
        gpu_report.main()
    assert "--miniature" in capsys.readouterr().err
