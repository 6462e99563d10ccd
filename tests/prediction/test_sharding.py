"""A folder of images that processes share, and a kill in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.modeling import build_model
from PIL import Image
from torch.distributed.elastic.utils.distributed import get_free_port

from dynamic_sparse_rcnn import write_checkpoint
from dynamic_sparse_rcnn.cli import main

NUMBER = 40


@pytest.fixture
def command(tiny_cfg, tmp_path) -> list[str]:
    """``predict`` for a folder, with an untrained detector; without its output folder."""
    tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.INPUT.MAX_SIZE_TEST = 64, 96
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(tiny_cfg.dump())
    write_checkpoint(tmp_path / "run/model_final.pth", {"model": build_model(tiny_cfg).state_dict()})
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUMBER):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/photo_{number:02d}.png")
    (tmp_path / "images/broken.png").write_bytes(b"nothing")
    options = ["--weights", str(tmp_path / "run"), "--score-threshold", "0", "--batch-size", "2"]
    return ["predict", str(tmp_path / "images"), *options, "--output"]


def start_both(command: list[str]) -> list[subprocess.Popen]:
    """Two processes, in the environment that torchrun gives them."""
    port = str(get_free_port())
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "dynamic_sparse_rcnn.cli", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank} | common,
        )
        for rank in ("0", "1")
    ]


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


@pytest.mark.slow
def test_processes_share_images_and_a_killed_job_goes_on(command, tmp_path, capsys):
    main([*command, str(tmp_path / "alone")])
    expected = json.loads((tmp_path / "alone/detections.json").read_text())
    capsys.readouterr()

    output = tmp_path / "shared"
    processes = start_both([*command, str(output)])
    files = [output / f"detections.partial/process-{rank}.jsonl" for rank in range(2)]
    while min(map(lines_in, files)) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")}
    assert not (output / "detections.json").exists()

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    again = subprocess.run(
        [*torchrun, "-m", "dynamic_sparse_rcnn.cli", *command, str(output)], capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert "images and videos are done already" in again.stdout + again.stderr
    assert "1 could not be read" in again.stdout and f"in {NUMBER} images" in again.stdout
    assert {path.name for path in output.iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}
    untouched = [name for name, time_written in kept.items() if (output / name).stat().st_mtime_ns == time_written]
    assert 4 <= len(untouched) < NUMBER
    merged = json.loads((output / "detections.json").read_text())
    assert len(merged) == len(expected)
    for one, other in zip(merged, expected, strict=True):
        assert (one["file_name"], one["image_id"]) == (other["file_name"], other["image_id"])
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.01)
