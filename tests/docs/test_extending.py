"""The module that the guide to own parts builds up can be trained with, and its detector used."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs/guides/extending.md"


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for of, block in found if of == language]


@pytest.mark.slow
def test_a_training_with_all_parts_of_the_page_runs_and_its_detector_predicts(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text("\n\n".join(blocks("python")))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with open("boxes.csv", "w", newline="") as file:
        for number in range(4):
            cv2.imwrite(f"{number}.png", rng.integers(0, 255, (64, 96, 3), np.uint8))
            csv.writer(file).writerows(
                [[f"{number}.png", "cat", 4, 4, 44, 40], [f"{number}.png", "dog", 52, 20, 90, 60]]
            )
    command, *settings = blocks("")
    small = [
        "--val",
        "csv:boxes.csv",
        "SOLVER.MAX_ITER",
        "2",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "INPUT.MIN_SIZE_TRAIN",
        "(64,)",
    ]
    arguments = [word for block in (command, *settings) for word in shlex.split(block)][1:]
    config = ["--config-file", "small/sparse_rcnn_R_18_FPN_50pro_256px.yaml"]
    whole = [*arguments[:1], *config, *small[:2], *arguments[1:], *small[2:]]
    whole += ["INPUT.MIN_SIZE_TEST", "64", "MODEL.DEVICE", "cpu"]
    # In a process of its own: what it registers would stay for other tests.
    subprocess.run([sys.executable, "-m", "dynamic_sparse_rcnn.cli", *whole], check=True)
    steps = [json.loads(line) for line in Path("output/mine/metrics.json").read_text().splitlines()]
    losses = next(step for step in steps if "total_loss" in step)
    assert {"loss_center", "loss_center_0", "loss_center_1", "loss_ce"} <= losses.keys()
    # Three proposals learn from each ground truth, or fewer where two ground truths want the same ones.
    assert 1.5 < losses["dla/positives_per_gt_last_stage"] <= 3
    assert any("bbox/AP" in step for step in steps)
    prediction = ["predict", "0.png", "--weights", "output/mine", "--import", "my_parts", "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "dynamic_sparse_rcnn.cli", *prediction], check=True)
    assert Path("output/predictions/detections.json").is_file()
