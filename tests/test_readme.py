"""What the README says to type works."""

from __future__ import annotations

import doctest
from pathlib import Path

import cv2
import pytest

from dynamic_sparse_rcnn import Predictor, model_zoo, write_checkpoint
from dynamic_sparse_rcnn.checkpoints import released
from dynamic_sparse_rcnn.checkpoints.released import ReleasedCheckpoint, record_checkpoint, sha256_of
from dynamic_sparse_rcnn.prediction.loading import DEFAULT_CONFIG

ROOT = Path(__file__).parents[1]
RELEASED = released.find_released(DEFAULT_CONFIG)


@pytest.fixture
def small_detector(tmp_path, monkeypatch) -> None:
    """The detector that comes with the package; as long as there is none, an untrained one in its place."""
    monkeypatch.setattr(released, "get_cache_dir", lambda: str(tmp_path / "cache"))
    if RELEASED is not None:
        return
    (tmp_path / "checkpoints.json").write_text("[]")
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    names = ["circle", "square", "triangle", "star", "ring"]
    weights = model_zoo.get(DEFAULT_CONFIG, device="cpu").state_dict()
    file = tmp_path / "small.safetensors"
    write_checkpoint(file, {"model": weights, "class_names": names, "category_ids": [1, 2, 3, 4, 5]})
    record_checkpoint(ReleasedCheckpoint(DEFAULT_CONFIG, file.name, sha256_of(file), "", ""))


def test_the_five_lines_run(small_detector, tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    parser = doctest.DocTestParser()
    test = parser.get_doctest((ROOT / "README.md").read_text(encoding="utf-8"), {}, "README.md", "README.md", 0)
    names = test.globs
    runner = doctest.DocTestRunner(verbose=False)
    assert len(test.examples) == 5
    result = runner.run(test, clear_globs=False)
    assert (result.attempted, result.failed) == (5, 0)
    assert cv2.imread("detections.png").shape == (384, 384, 3)
    assert names["boxes"].shape == (len(names["classes"]), 4)


@pytest.mark.skipif(RELEASED is None, reason="tools/release_checkpoint.py has not recorded a checkpoint yet")
def test_the_detector_that_comes_with_the_package_finds_the_shapes():
    prediction = Predictor(device="cpu")(ROOT / "docs/shapes.png")
    # The first held-out image of the generated set.
    assert sorted(prediction.labels) == ["circle", "star", "triangle", "triangle"]
