"""``make clean`` removes what the Makefile's targets write, and nothing of a user's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_clean_leaves_folders_of_a_user(tmp_path: Path) -> None:
    written = ["output/demo/log.txt", "output/shapes/train.json", "output/bench/speed.json", "build/site/index.html"]
    written += ["dist/a.whl", "tools/__pycache__/a.pyc", ".pytest_cache/a", "a.egg-info/a"]
    kept = ["output/demo_photos/a.jpg", "output/mine/__pycache__/a", "datasets/photos/.label_cache/a", "tools/a.py"]
    for name in (*written, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["make", "-f", str(MAKEFILE), "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()]
    assert sorted(left) == sorted(kept)
