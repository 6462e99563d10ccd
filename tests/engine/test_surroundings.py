"""What fails around a run, a disk or images: it is told in one line, and the run can be resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from compared_runs import assert_same_checkpoints
from small_disks import mounted, remount
from small_runs import CONFIG, TINY

from dynamic_sparse_rcnn.cli import main
from dynamic_sparse_rcnn.data import mapper
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes

# Checkpoints of 5 MB.
SMALL = [
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_efficientnet"),
    *("MODEL.TIMM.PRETRAINED", "False", "SEED", "1", "DATALOADER.NUM_WORKERS", "1"),
]


@pytest.fixture
def data(tmp_path) -> tuple[str, Path]:
    """A data set, and the folder of its images."""
    paths = generate_shapes(tmp_path / "data", "train", ShapesConfig(num_images=6, image_size=64))
    return f"coco:{paths.json_path}:{paths.image_folder}", Path(paths.image_folder)


@pytest.fixture
def train(data):
    def run(output: Path, *options: str) -> None:
        arguments = ["train", "--data", data[0], "--val", data[0], "--output", str(output), "--config-file", CONFIG]
        main([*arguments, *options, *TINY, *SMALL])

    return run


def remove_files(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def error_of(capfd: pytest.CaptureFixture[str]) -> str:
    """The line that a command ended with."""
    said = capfd.readouterr().err
    assert "Traceback" not in said and "Logging error" not in said
    line = said.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_run_on_a_full_disk_is_resumed_once_there_is_room(train, tmp_path, capfd):
    train(tmp_path / "unbroken")
    size = (tmp_path / "unbroken/model_0000001.pth").stat().st_size
    with mounted(tmp_path / "disk", f"{3 * size // 2}") as disk:
        with pytest.raises(SystemExit):
            train(disk / "run")
        assert f"No space left on device: '{disk}/run/model_0000003.pth'" in error_of(capfd)
        assert (disk / "run/last_checkpoint").read_text() == "model_0000001.pth"
        remount(disk, f"size={5 * size}")
        train(disk / "run", "--resume")
        assert_same_checkpoints(disk / "run/model_final.pth", tmp_path / "unbroken/model_final.pth")


def test_a_full_disk_that_no_file_of_a_run_fits_on_is_told(train, tmp_path, capfd):
    with mounted(tmp_path / "disk", "64k") as disk:
        (disk / "other").write_bytes(bytes(60_000))
        with pytest.raises(SystemExit):
            train(disk / "run")
        assert f"No space left on device: '{disk}/run" in error_of(capfd)


@pytest.mark.parametrize("folder", ["new", "."])
def test_a_read_only_disk_is_told_before_anything_else_happens(train, tmp_path, capfd, folder):
    with mounted(tmp_path / "disk", "64k") as disk:
        remount(disk, "ro")
        with pytest.raises(SystemExit):
            train(disk / folder)
        said = capfd.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.startswith("error: ") and f"Read-only file system: '{disk}" in line


def test_images_that_vanish_in_the_midst_of_a_training_are_named_and_the_run_is_resumed(
    train, data, tmp_path, capfd, monkeypatch
):
    train(tmp_path / "unbroken")
    images, read, count = data[1], mapper.read_image, []
    shutil.copytree(images, tmp_path / "backup")

    def read_until_they_vanish(file: str, image_format: str):
        count.append(file)
        if len(count) == 7:  # the first of the last iteration
            remove_files(images)
        return read(file, image_format)

    with monkeypatch.context() as context:
        context.setattr(mapper, "read_image", read_until_they_vanish)
        with pytest.raises(SystemExit):
            train(tmp_path / "run")
    line = error_of(capfd)
    assert f"{images}/" in line and "No such file" in line
    assert line.endswith("Replace this image, or remove it from the annotations.")
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000001.pth"
    with pytest.raises(SystemExit):
        train(tmp_path / "run", "--resume")
    assert "6 of 6 images of" in error_of(capfd)
    shutil.copytree(tmp_path / "backup", images, dirs_exist_ok=True)
    train(tmp_path / "run", "--resume")
    assert_same_checkpoints(tmp_path / "run/model_final.pth", tmp_path / "unbroken/model_final.pth")


def test_test_images_that_vanish_are_named_after_the_weights_are_saved(train, data, tmp_path, capfd, monkeypatch):
    from dynamic_sparse_rcnn.engine.run import TrainingRun

    evaluate = TrainingRun.evaluate

    def evaluate_nothing(run: TrainingRun):
        remove_files(data[1])
        return evaluate(run)

    monkeypatch.setattr(TrainingRun, "evaluate", evaluate_nothing)
    with pytest.raises(SystemExit):
        train(tmp_path / "run")
    line = error_of(capfd)
    assert f"6 of 6 images of {data[0]} do not exist" in line
    assert torch.load(tmp_path / "run/model_final.pth")["iteration"] == 3
