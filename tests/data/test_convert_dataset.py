"""Data sets converted to other formats stay the same data set."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from small_disks import mounted, remount
from torchvision.datasets import CocoDetection
from written_datasets import (
    CONTENT,
    HEIGHT,
    WIDTH,
    ap_of_ground_truth,
    coco_content,
    detect,
    evaluate,
    registered,
    table,
    write_coco,
    write_images,
    write_split,
    write_voc,
    write_yolo,
    xyxy,
)

from dynamic_sparse_rcnn.data.convert import convert_dataset

BCCD = Path(os.environ.get("BCCD_FOLDER", "-"))
FORMATS = ("coco", "voc", "yolo")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("dynamic_sparse_rcnn"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def write(folder: Path, prefix: str) -> str:
    """The same set in a format; returns its name."""
    if prefix == "yolo":
        return write_yolo(folder, CONTENT)
    write_images(folder / "images", CONTENT)
    if prefix == "coco":
        return write_coco(folder, coco_content(CONTENT))
    write_voc(folder, CONTENT)
    write_images(folder / "JPEGImages", CONTENT)
    return f"voc:{folder}:train"


def assert_same(first: str, second: str) -> None:
    one, other = table(registered(first)), table(registered(second))
    assert one.keys() == other.keys()
    for stem in one:
        assert sorted(one[stem].elements()) == [
            (name, pytest.approx(corners, abs=1e-9)) for name, corners in sorted(other[stem].elements())
        ]


@pytest.mark.parametrize(("source", "target"), list(itertools.product(FORMATS, FORMATS)))
def test_boxes_classes_and_images_survive_a_conversion(tmp_path: Path, source: str, target: str) -> None:
    original = write(tmp_path / "original", source)
    converted = convert_dataset(original, target, tmp_path / "converted", "train")
    assert converted.startswith(f"{target}:{tmp_path}/converted")
    assert_same(original, converted)
    if target != "voc":
        assert MetadataCatalog.get(converted).thing_classes == MetadataCatalog.get(original).thing_classes
    for record, old in zip(DatasetCatalog.get(converted), DatasetCatalog.get(original), strict=True):
        assert (record["width"], record["height"]) == (old["width"], old["height"])
        assert Path(record["file_name"]).read_bytes() == Path(old["file_name"]).read_bytes()
    assert ap_of_ground_truth(converted, tmp_path / "output") == pytest.approx(100)


def test_difficult_objects_and_category_ids_are_kept_where_the_format_has_them(tmp_path: Path) -> None:
    voc = registered(convert_dataset(write(tmp_path / "a", "voc"), "voc", tmp_path / "voc", "val"))
    assert [o["difficult"] for record in DatasetCatalog.get(voc) for o in record["annotations"]] == [0, 0, 0, 0, 1]
    coco = registered(convert_dataset(write(tmp_path / "b", "coco"), "coco", tmp_path / "coco", "val"))
    assert list(MetadataCatalog.get(coco).thing_dataset_id_to_contiguous_id) == [2, 7, 9]


@pytest.mark.parametrize("target", ["voc", "yolo"])
def test_what_a_format_does_not_know_is_left_out_and_counted(
    tmp_path: Path, target: str, log: pytest.LogCaptureFixture
) -> None:
    coco = coco_content(CONTENT)
    coco["annotations"][0]["iscrowd"] = 1
    coco["annotations"][1]["bbox"] = [500, 0, 9, 9]
    coco["annotations"][2]["bbox"] = [-10, 10, 40, 20]
    write_images(tmp_path / "images", CONTENT)
    converted = registered(convert_dataset(write_coco(tmp_path, coco), target, tmp_path / "converted", "train"))
    warnings = [record.getMessage() for record in log.records]
    assert warnings[:2] == ["1 unusable boxes are dropped.", "1 crowds are dropped, which this format does not have."]
    (annotation,) = DatasetCatalog.get(converted)[0]["annotations"]
    assert annotation["bbox"] == pytest.approx([0 if target == "yolo" else -10, 10, 30, 30])
    assert any("1 boxes reach beyond their image" in warning for warning in warnings) == (target == "yolo")


def test_splits_go_to_one_folder_one_after_the_other(tmp_path: Path) -> None:
    write(tmp_path / "a", "voc")
    write_split(tmp_path / "a", "val", ["b"])
    for target in FORMATS:
        for split in ("train", "val"):
            original = f"voc:{tmp_path}/a:{split}"
            assert_same(original, convert_dataset(original, target, tmp_path / target, split))
        assert_same(
            f"voc:{tmp_path}/a:train", convert_dataset(f"voc:{tmp_path}/a:train", target, tmp_path / target, "train")
        )


def test_other_images_or_classes_in_the_folder_are_not_overwritten(tmp_path: Path) -> None:
    original = write(tmp_path / "a", "coco")
    for target in FORMATS:
        convert_dataset(original, target, tmp_path / target, "train")
    for file in (tmp_path / "coco/images/b.jpg", tmp_path / "voc/JPEGImages/b.jpg", tmp_path / "yolo/images/val/b.jpg"):
        target = file.relative_to(tmp_path).parts[0]
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"other")
        before = contents(tmp_path / target)
        with pytest.raises(FileExistsError, match=rf"{file} is another image than .*a/images/b\.jpg"):
            convert_dataset(original, target, tmp_path / target, "val")
        assert contents(tmp_path / target) == before
    content = coco_content(CONTENT)
    content["categories"][0]["name"] = "other"
    write_images(tmp_path / "b/images", CONTENT)
    with pytest.raises(FileExistsError, match=r"data\.yaml has other classes than ant, other, bee"):
        convert_dataset(write_coco(tmp_path / "b", content), "yolo", tmp_path / "yolo", "test")


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("target", ["voc", "yolo"])
def test_labels_of_another_image_with_the_same_stem_are_not_overwritten(tmp_path: Path, target: str) -> None:
    train, val = coco_content({"a": CONTENT["a"]}), coco_content({"a": CONTENT["b"]})
    val["images"][0]["file_name"] = "a.png"
    write_images(tmp_path / "train/images", ["a"])
    write_images(tmp_path / "val/images", ["a"])
    (tmp_path / "val/images/a.jpg").rename(tmp_path / "val/images/a.png")
    convert_dataset(write_coco(tmp_path / "train", train), target, tmp_path / "new", "train")
    before = contents(tmp_path / "new")
    split = "val" if target == "voc" else "train"  # a split of YOLO has a folder of its own
    found = "Annotations/a.xml is there already" if target == "voc" else "images/train has 1 images that are"
    with pytest.raises(FileExistsError, match=f"{tmp_path}/new/{found}"):
        convert_dataset(write_coco(tmp_path / "val", val), target, tmp_path / "new", split)
    assert contents(tmp_path / "new") == before


@pytest.mark.parametrize(
    ("target", "file"),
    [("coco", "annotations/train.json"), ("voc", "ImageSets/Main/train.txt"), ("yolo", "labels/train/a.txt")],
)
def test_a_split_of_the_same_name_is_not_overwritten(tmp_path: Path, target: str, file: str) -> None:
    convert_dataset(write(tmp_path / "a", "coco"), target, tmp_path / "new", "train")
    before = contents(tmp_path / "new")
    write_images(tmp_path / "b/images", ["0", *CONTENT])
    content = {"0": [], "a": CONTENT["b"]} | ({"b": [], "c": []} if target == "yolo" else {})
    other = write_coco(tmp_path / "b", coco_content(content))
    with pytest.raises(FileExistsError, match=rf"{tmp_path}/new/{file} is there already, with other content"):
        convert_dataset(other, target, tmp_path / "new", "train")
    assert contents(tmp_path / "new") == before


def test_a_second_set_with_other_images_is_not_merged_into_a_split_of_yolo(tmp_path: Path) -> None:
    first, second = (write_coco(tmp_path / stem, coco_content({stem: CONTENT["a"]})) for stem in "de")
    for stem in "de":
        write_images(tmp_path / stem / "images", [stem])
    convert_dataset(first, "yolo", tmp_path / "new", "train")
    before = contents(tmp_path / "new")
    with pytest.raises(FileExistsError, match=rf"{tmp_path}/new/images/train has 1 images .*/d\.jpg.*\(--split\)"):
        convert_dataset(second, "yolo", tmp_path / "new", "train")
    assert contents(tmp_path / "new") == before
    convert_dataset(second, "yolo", tmp_path / "new", "val")
    assert_same(first, f"yolo:{tmp_path}/new/data.yaml:train")
    assert_same(second, f"yolo:{tmp_path}/new/data.yaml:val")


def test_an_interrupted_conversion_is_completed_by_the_next(tmp_path: Path) -> None:
    original = write(tmp_path / "a", "coco")
    for target in FORMATS:
        convert_dataset(original, target, tmp_path / target, "train")
        whole = contents(tmp_path / target)
        for name in ("b.jpg", "c.jpg", "c.txt", "c.xml", "data.yaml", "train.txt", "train.json"):
            for file in (tmp_path / target).rglob(name):
                file.unlink()
        assert contents(tmp_path / target).keys() < whole.keys()
        convert_dataset(original, target, tmp_path / target, "train")
        assert contents(tmp_path / target) == whole


@pytest.mark.parametrize("split", ["names", "train"])
def test_keys_of_a_data_yaml_are_not_overwritten(tmp_path: Path, split: str) -> None:
    (tmp_path / "new").mkdir()
    text = "names: {0: ant, 1: cell, 2: bee}\ntrain: elsewhere\n"
    (tmp_path / "new/data.yaml").write_text(text)
    with pytest.raises(FileExistsError, match=rf"{tmp_path}/new/data\.yaml has .* for '{split}'.*\(--split\)"):
        convert_dataset(write(tmp_path / "a", "coco"), "yolo", tmp_path / "new", split)
    assert contents(tmp_path / "new") == {tmp_path / "new/data.yaml": text.encode()}


@pytest.mark.parametrize("target", FORMATS)
def test_folders_called_images_or_labels_keep_their_boxes(tmp_path: Path, target: str) -> None:
    coco = coco_content({str(i): CONTENT["a"][i:] for i in range(3)})
    folders = ("siteA/images", "siteA/labels", "images/siteB/images")
    for folder, image in zip(folders, coco["images"], strict=True):
        write_images(tmp_path / "images" / folder, [Path(image["file_name"]).stem])
        image["file_name"] = f"{folder}/{image['file_name']}"
    original = write_coco(tmp_path, coco)
    assert sum(map(len, table(registered(original)).values())) == 6
    assert_same(original, convert_dataset(original, target, tmp_path / "new", "train"))


def test_images_that_would_share_a_label_file_of_yolo_are_an_error(tmp_path: Path) -> None:
    coco = coco_content({"images/labels/a": CONTENT["a"], "labels/images/a": CONTENT["b"]})
    for folder in ("images/labels", "labels/images"):
        write_images(tmp_path / "images" / folder, ["a"])
    with pytest.raises(ValueError, match=r"train/labels/labels/a\.txt would have the labels of several images"):
        convert_dataset(write_coco(tmp_path, coco), "yolo", tmp_path / "new", "train")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("source", FORMATS)
def test_an_image_that_cannot_be_used_is_named_before_anything_is_written(tmp_path: Path, source: str) -> None:
    original = write(tmp_path / "a", source)
    file = Path(DatasetCatalog.get(registered(original))[1]["file_name"])
    file.write_bytes(file.read_bytes()[:20])
    for target in FORMATS:
        with pytest.raises(ValueError, match=rf"1 of 3 images of .*, first: {file} cannot be read .*: replace it"):
            convert_dataset(original, target, tmp_path / "new", "train")
    file.unlink()
    if source != "yolo":  # whose images are those that are there
        with pytest.raises(FileNotFoundError, match=f"1 of 3 images of .* do not exist, first: {file}"):
            convert_dataset(original, "coco", tmp_path / "new", "train")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("source", FORMATS)
def test_other_readers_find_images_and_boxes_in_a_coco_file(tmp_path: Path, source: str) -> None:
    original = registered(write(tmp_path / "a", source))
    convert_dataset(original, "coco", tmp_path / "new", "val")
    file = str(tmp_path / "new/annotations/val.json")
    with contextlib.redirect_stdout(None):
        images, coco = CocoDetection(str(tmp_path / "new/images"), file), COCO(file)
    assert sorted(coco.getImgIds()) == images.ids == [1, 2, 3]
    for identity, (image, objects), record in zip(images.ids, images, DatasetCatalog.get(original), strict=True):
        assert image.size == (WIDTH, HEIGHT)
        assert coco.loadImgs(identity)[0]["file_name"] == Path(record["file_name"]).name
        assert coco.loadAnns(coco.getAnnIds(imgIds=identity)) == objects
        corners = sorted([x, y, x + width, y + height] for x, y, width, height in (obj["bbox"] for obj in objects))
        assert corners == [pytest.approx(box) for box in sorted(xyxy(o).tolist() for o in record["annotations"])]


def test_ids_that_are_integers_are_kept_in_a_coco_file(tmp_path: Path) -> None:
    content = coco_content(CONTENT)
    for image in content["images"]:
        image["id"] *= 10
    for annotation in content["annotations"]:
        annotation["image_id"] *= 10
    write_images(tmp_path / "images", CONTENT)
    name = registered(convert_dataset(write_coco(tmp_path, content), "coco", tmp_path / "new", "train"))
    assert [record["image_id"] for record in DatasetCatalog.get(name)] == [10, 20, 30]


def test_a_set_without_images_is_named(tmp_path: Path) -> None:
    DatasetCatalog.register(f"nothing in {tmp_path}", list)
    MetadataCatalog.get(f"nothing in {tmp_path}").thing_classes = ["ant"]
    for target in FORMATS:
        with pytest.raises(ValueError, match=f"nothing in {tmp_path} has no images"):
            convert_dataset(f"nothing in {tmp_path}", target, tmp_path / target, "train")


def test_images_in_folders_keep_them_and_those_that_cannot_be_told_apart_are_an_error(tmp_path: Path) -> None:
    coco = coco_content(CONTENT)
    for folder, image in zip(("1", "2", "1"), coco["images"], strict=True):
        write_images(tmp_path / "images" / folder, [Path(image["file_name"]).stem])
        image["file_name"] = f"{folder}/{image['file_name']}"
    (tmp_path / "images/2/b.jpg").rename(tmp_path / "images/2/a.jpg")
    coco["images"][1]["file_name"] = "2/a.jpg"
    original = write_coco(tmp_path, coco)
    for target in FORMATS:
        records = DatasetCatalog.get(registered(convert_dataset(original, target, tmp_path / target, "train")))
        found = sorted((Path(*Path(r["file_name"]).parts[-2:]).as_posix(), len(r["annotations"])) for r in records)
        assert found == [("1/a.jpg", 3), ("1/c.jpg", 0), ("2/a.jpg", 2)]
    (tmp_path / "images/2/a.jpg").rename(tmp_path / "images/1/a.png")
    coco["images"][1]["file_name"] = "1/a.png"
    original = write_coco(tmp_path, coco)
    for target in ("voc", "yolo"):
        with pytest.raises(ValueError, match=r"without suffix, but .*a\.\* are several images\. Rename"):
            convert_dataset(original, target, tmp_path / "again", "train")


def test_a_conversion_that_a_full_disk_has_stopped_is_repeated_once_there_is_room(tmp_path: Path) -> None:
    name = write(tmp_path / "source", "coco")
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "source/images/a.jpg", quality=100)  # of 20 kB
    with mounted(tmp_path / "disk", "16k") as disk:
        with pytest.raises(OSError, match=rf"No space left on device: '{disk}/new/images/train/a\.jpg"):
            convert_dataset(name, "yolo", disk / "new", "train")
        remount(disk, "size=1m")
        converted = registered(convert_dataset(name, "yolo", disk / "new", "train"))
        assert table(converted).keys() == table(registered(name)).keys()


def test_an_unknown_format_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="converted to coco, voc, yolo, not to 'kitti'"):
        convert_dataset("coco:a.json", "kitti", tmp_path, "train")


@pytest.mark.skipif(not BCCD.is_dir(), reason="BCCD_FOLDER does not name the folder of the BCCD data set")
def test_real_annotations_have_the_same_metrics_in_all_formats(tmp_path: Path) -> None:
    from detectron2.evaluation import COCOEvaluator

    original = f"coco:{BCCD}/annotations_coco/val.json:{BCCD}/JPEGImages"
    names = [original, *(convert_dataset(original, prefix, tmp_path / prefix, "val") for prefix in FORMATS)]
    results = []
    for name in names:
        ap = ap_of_ground_truth(registered(name), tmp_path / "output")
        metrics = evaluate(COCOEvaluator(name, ("bbox",), False, output_dir=None), detect(name))["bbox"]
        results.append([ap, metrics["AP"], metrics["AP50"], metrics["APs"], metrics["AP-RBC"]])
    assert results[0][0] == pytest.approx(100)
    assert 5 < results[0][1] < 95
    for other in results[1:]:
        assert other == pytest.approx(results[0], abs=1e-9)
