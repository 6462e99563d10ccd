"""Files that are written whole or not at all, and what is said where they cannot be."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_disks import mounted, remount

from dynamic_sparse_rcnn import write_checkpoint
from dynamic_sparse_rcnn.file_io import naming_the_file, whole_file, write_image, write_json


def test_a_file_takes_its_place_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "new" / "x.json"
    write_json({"a": 1}, path)
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"half", "no bytes"])
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_errors_of_the_disk_name_the_file_that_was_wanted(tmp_path, monkeypatch, code):
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"{os.strerror(code)}: '{tmp_path}/x.json'"):
        write_json([], tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=f"'{tmp_path / 'file'}'"):
        write_json([], tmp_path / "file" / "x.json")
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}'"):
        write_json([], tmp_path)


@pytest.mark.parametrize("name", ["x.png", "sub/猫 $1.jpg", "x.webp"])
def test_images_are_written_as_rgb_in_the_format_of_their_suffix(tmp_path, name):
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 255
    write_image(image, tmp_path / name)
    blue, _, red = cv2.imdecode(np.fromfile(tmp_path / name, np.uint8), cv2.IMREAD_COLOR).reshape(-1, 3).mean(0)
    assert red > 240 and blue < 15


@pytest.mark.parametrize("name", ["x", "x.txt", "x.mp4"])
def test_suffixes_of_no_image_are_refused(tmp_path, name):
    with pytest.raises(OSError, match=r"cannot be written as an image: give it a suffix such as \.png"):
        write_image(np.zeros((8, 8, 3), np.uint8), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "256k") as folder:
        yield folder


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_is_told_with_the_file_which_stays_what_it_was(small_disk, suffix):
    file = small_disk / f"model{suffix}"
    write_checkpoint(file, {"model": {"weight": torch.zeros(10)}})
    before = file.read_bytes()
    with pytest.raises(OSError, match=rf"No space left on device: '{file}'$") as error:
        write_checkpoint(file, {"model": {"weight": torch.zeros(100_000)}})
    assert error.value.errno == errno.ENOSPC
    assert file.read_bytes() == before
    assert os.listdir(small_disk) == [file.name]


def test_a_full_disk_is_told_of_files_of_any_kind(small_disk):
    file = small_disk / "folder/values.json"
    with pytest.raises(OSError, match=rf"No space left on device: '{file}'$"):
        write_json(["value"] * 100_000, file)


def test_a_read_only_disk_is_told_with_the_file(small_disk):
    remount(small_disk, "ro")
    with pytest.raises(OSError, match=rf"Read-only file system: '{small_disk}/model\.pth'$"):
        write_checkpoint(small_disk / "model.pth", {"model": {}})


def test_errors_of_a_disk_are_found_behind_others_and_others_stay_what_they_are(tmp_path):
    def fail(error: BaseException, cause: BaseException) -> None:
        with naming_the_file(tmp_path / "file"):
            try:
                raise cause
            except OSError:
                raise error  # noqa: B904

    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/file'"):
        fail(RuntimeError("unexpected pos"), full)
    with pytest.raises(OSError, match="other"):  # which is named already
        fail(OSError(errno.ENOSPC, "No space left on device", "other"), full)
    with pytest.raises(RuntimeError, match="of another kind"):
        fail(RuntimeError("of another kind"), OSError(errno.ENOENT, "No such file or directory"))
