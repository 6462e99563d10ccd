"""Image files as they really are: found before a run, or read as what they show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image, ImageFile
from ranks import run_ranks

from dynamic_sparse_rcnn.data.checks.images import check_images
from dynamic_sparse_rcnn.data.images import IMAGE_ERRORS, read_image
from dynamic_sparse_rcnn.data.mapper import Resize

WIDTH, HEIGHT = 40, 30


@pytest.fixture
def pixels() -> np.ndarray:
    """(30, 40, 3): no two rows or columns alike, so that a turned image differs."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows * 8, columns * 6, (rows + columns) * 3], axis=-1).astype(np.uint8)


def record(file: Path, width: int = WIDTH, height: int = HEIGHT) -> dict[str, Any]:
    return {"file_name": str(file), "width": width, "height": height, "annotations": []}


def problem_of(file: Path, **size: int) -> str | None:
    usable, report = check_images([record(file, **size)])
    assert len(usable) + len(report.unusable) == 1
    return report.unusable[0][1] if report.unusable else None


def save_turned(file: Path, pixels: np.ndarray, orientation: int) -> None:
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(file, exif=exif)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
def test_whole_images_pass_and_truncated_ones_are_named(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(file)
    assert problem_of(file) is None
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2):
        file.write_bytes(whole[:length])
        problem = problem_of(file)
        assert problem is not None and problem.startswith("cannot be read") and "replace it" in problem


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning", "ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_an_image_cut_anywhere_passes_if_and_only_if_it_can_be_read(
    tmp_path: Path, pixels: np.ndarray, suffix: str
) -> None:
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(file)
    whole = file.read_bytes()
    for length in range(0, len(whole) + 1, max(1, len(whole) // 40)):
        file.write_bytes(whole[:length])
        try:
            read_image(str(file), "RGB")
        except IMAGE_ERRORS:
            assert problem_of(file) is not None, length
        else:
            assert problem_of(file) is None, length


def test_trailing_bytes_and_progressive_images_are_no_problem(tmp_path: Path, pixels: np.ndarray) -> None:
    file = tmp_path / "image.jpg"
    Image.fromarray(pixels).save(file, progressive=True)
    file.write_bytes(file.read_bytes() + bytes(100))
    assert problem_of(file) is None


def test_a_text_file_and_floating_point_pixels_are_named(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    assert "cannot be read" in (problem_of(tmp_path / "page.jpg") or "")
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.float32)).save(tmp_path / "depth.tif")
    assert "floating-point" in (problem_of(tmp_path / "depth.tif") or "")
    with pytest.raises(ValueError, match=r"depth\.tif has floating-point pixels.*Convert"):
        read_image(str(tmp_path / "depth.tif"), "RGB")


def test_missing_files_are_left_to_the_check_of_the_data_set(tmp_path: Path) -> None:
    usable, report = check_images([record(tmp_path / "none.jpg")])
    assert len(usable) == 1 and not report.unusable


def test_another_size_than_annotated_is_named_with_both(tmp_path: Path, pixels: np.ndarray) -> None:
    file = tmp_path / "image.png"
    Image.fromarray(pixels).save(file)
    assert "is 40x30, but annotated as 80x60: correct" in (problem_of(file, width=80, height=60) or "")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_have_the_size_of_what_is_read(tmp_path: Path, pixels: np.ndarray, orientation: int) -> None:
    file = tmp_path / "image.jpg"
    save_turned(file, pixels, orientation)
    height, width = read_image(str(file), "RGB").shape[:2]
    assert problem_of(file, width=width, height=height) is None
    if orientation >= 5:
        assert (width, height) == (HEIGHT, WIDTH)
        assert "EXIF orientation" in (problem_of(file, width=WIDTH, height=HEIGHT) or "")


def move_exif_behind_pixels(file: Path) -> None:
    content = file.read_bytes()
    start, end = content.index(b"eXIf") - 4, content.index(b"IEND") - 4
    length = 12 + int.from_bytes(content[start : start + 4], "big")
    file.write_bytes(content[:start] + content[start + length : end] + content[start : start + length] + content[end:])


@pytest.mark.parametrize("behind", [False, True])
def test_turned_pngs_are_found_wherever_their_exif_data_are(tmp_path: Path, pixels: np.ndarray, behind: bool) -> None:
    file = tmp_path / "image.png"
    save_turned(file, pixels, 6)
    if behind:
        move_exif_behind_pixels(file)
    assert read_image(str(file), "RGB").shape == (WIDTH, HEIGHT, 3)
    assert problem_of(file, width=HEIGHT, height=WIDTH) is None
    assert "EXIF orientation" in (problem_of(file, width=WIDTH, height=HEIGHT) or "")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_whole_images_are_not_decoded(
    tmp_path: Path, pixels: np.ndarray, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(file)
    decoded: list[Image.Image] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    assert problem_of(file) is None
    assert not decoded


def test_sixteen_bits_are_read_as_their_upper_eight_and_counted(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read = read_image(str(tmp_path / "deep.png"), "BGR")
    assert read.shape == (HEIGHT, WIDTH, 3) and read.dtype == np.uint8
    assert (read == (deep >> 8)[..., None]).all()
    usable, report = check_images([record(tmp_path / "deep.png")])
    assert len(usable) == 1
    assert report.warnings() == [f"1 images have 16 bits, read as value / 256, first: {tmp_path}/deep.png"]


@pytest.mark.parametrize("suffix", ["gif", "tiff"])
def test_files_of_several_images_are_counted(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    page = Image.fromarray(pixels)
    page.save(tmp_path / f"single.{suffix}")
    page.save(tmp_path / f"several.{suffix}", save_all=True, append_images=[Image.fromarray(pixels[::-1])])
    usable, report = check_images([record(tmp_path / f"{name}.{suffix}") for name in ("single", "several")])
    assert len(usable) == 2
    (warning,) = report.warnings()
    assert warning.startswith("1 files hold several images") and warning.endswith(f"first: {tmp_path}/several.{suffix}")


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "RGB"])
def test_gray_transparent_and_palette_images_are_read_in_color(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / f"image.{suffix}")
    assert problem_of(tmp_path / f"image.{suffix}") is None
    read = read_image(str(tmp_path / f"image.{suffix}"), "RGB")
    assert np.array_equal(read, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("width", "height"), [(4000, 1), (4000, 2), (2, 4000), (400, 2)])
@pytest.mark.parametrize("max_size", [1333, 400])
def test_an_image_is_dropped_if_and_only_if_resizing_leaves_nothing_of_it(
    tmp_path: Path, width: int, height: int, max_size: int, orientation: int
) -> None:
    file = tmp_path / "image.png"
    save_turned(file, np.zeros((height, width, 3), np.uint8), orientation)
    size = (width, height) if orientation == 1 else (height, width)
    resize = T.ResizeShortestEdge([800, 200], max_size, "choice")
    _, report = check_images([record(file, *size)], Resize.of([resize, T.RandomFlip()]))
    try:
        shape = resize(T.AugInput(read_image(str(file), "RGB"))).apply_image(np.zeros((*size[::-1], 3), np.uint8)).shape
    except ValueError:  # of Pillow: height and width must be > 0
        shape = (0, 0)
    assert bool(report.unusable) == (min(shape[:2]) == 0)
    for _, reason in report.unusable:
        assert reason.startswith(
            f"is {size[0]}x{size[1]}: with its long side resized to {max_size} pixels, nothing is left"
        )


def test_images_that_are_not_resized_may_have_any_size() -> None:
    assert Resize.of([T.RandomFlip(), T.ResizeShortestEdge(0, 1333)]) is None


def test_every_unusable_file_is_kept_in_the_report_and_the_first_are_told(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.jpg").touch()
    _, report = check_images([record(tmp_path / f"{number}.jpg") for number in range(7)])
    assert [os.path.basename(file) for file, _ in report.unusable] == [f"{number}.jpg" for number in range(7)]
    (warning,) = report.warnings()
    assert warning.startswith("images dropped: 7 cannot be used, first:")
    assert "4.jpg" in warning and "5.jpg" not in warning


def find_the_fifth_and_sixth_of_seven(folder: Path) -> None:
    usable, report = check_images([record(folder / f"{number}.png") for number in range(7)])
    assert [Path(x["file_name"]).stem for x in usable] == ["0", "1", "2", "3", "6"]
    assert [Path(file).stem for file, _ in report.unusable] == ["4", "5"]
    assert [Path(file).stem for file in report.deep] == ["2"]


def test_processes_share_the_files_and_all_know_what_was_found(tmp_path: Path, pixels: np.ndarray) -> None:
    for number in range(7):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16)).save(tmp_path / "2.png")
    for number in (4, 5):
        (tmp_path / f"{number}.png").write_bytes(b"")
    find_the_fifth_and_sixth_of_seven(tmp_path)
    run_ranks(3, find_the_fifth_and_sixth_of_seven, tmp_path)
