"""Names of data sets, and a format that is added from outside."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image
from written_datasets import CONTENT, Box, ap_of_ground_truth, coco_content, write_coco, write_images, write_voc

from dynamic_sparse_rcnn.data.checks import load_checked_dataset, report_dataset
from dynamic_sparse_rcnn.data.convert import convert_dataset
from dynamic_sparse_rcnn.data.datasets import check_same_classes, register_dataset
from dynamic_sparse_rcnn.data.formats import (
    DATASET_FORMAT_REGISTRY,
    Classes,
    CocoDataset,
    DatasetFormat,
    VocDataset,
    parse_dataset_name,
)
from dynamic_sparse_rcnn.data.formats.reading import read_text
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.data.splits import SplitPart

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 120, "height": 80}
TAIL = SplitPart(Fraction(4, 5), Fraction(1), 7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coco:a.json:images", CocoDataset("a.json", "images")),
        ("coco:a.json", CocoDataset("a.json", None)),
        ("coco:boxes:images:80-100%:7", CocoDataset("boxes", "images", TAIL)),
        ("coco:a.json:80-100%:7", CocoDataset("a.json", None, TAIL)),
        (r"coco:C:\data\x.json:D:\images", CocoDataset(r"C:\data\x.json", r"D:\images")),
        (r"coco:C:\data\x.json:80-100%:7", CocoDataset(r"C:\data\x.json", None, TAIL)),
        ("coco:C:/data/x.json:D:/images", CocoDataset("C:/data/x.json", "D:/images")),
        ("coco:https://host/x.json:s3://bucket/images", CocoDataset("https://host/x.json", "s3://bucket/images")),
        ("coco:https://host:8080/x.json:images", CocoDataset("https://host:8080/x.json", "images")),
        ("coco:s3://bucket/x.json.gz", CocoDataset("s3://bucket/x.json.gz", None)),
        ("coco:12:30/a.json:images/12:30", CocoDataset("12:30/a.json", "images/12:30")),
        ("voc:folder:train", VocDataset("folder", "train")),
        ("voc:12:30:train", VocDataset("12:30", "train")),
        (r"voc:C:\VOC2007:train", VocDataset(r"C:\VOC2007", "train")),
        (r"voc:C:\VOC2007:train:80-100%:7", VocDataset(r"C:\VOC2007", "train", TAIL)),
        ("coco_2017_val", None),
        ("somebody:else", None),
        ("https://host/x.json", None),
    ],
)
def test_names_are_parsed_whatever_colons_their_paths_have(name: str, expected: DatasetFormat | None) -> None:
    assert parse_dataset_name(name) == expected


@pytest.mark.parametrize("name", ["coco:", "coco:a.json:", "coco::images", "coco:a.json:b:9%", "coco:a.json:b:9-5%"])
def test_a_malformed_coco_name_shows_the_expected_form(name: str) -> None:
    with pytest.raises(ValueError, match=r"does not have the form 'coco:<json>:<image folder>"):
        parse_dataset_name(name)


@pytest.mark.parametrize("name", ["voc:", "voc:folder", "voc::train", "voc:folder:", r"voc:C:\folder"])
def test_a_malformed_voc_name_shows_the_expected_form(name: str) -> None:
    with pytest.raises(ValueError, match=r"does not have the form 'voc:<folder>:<split>'"):
        parse_dataset_name(name)


def test_files_that_exist_decide_where_a_name_can_be_read_in_several_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "a:b", "images", "c:images"):
        Path(folder).mkdir()
    assert parse_dataset_name("coco:a/x.json:c:images") == CocoDataset("a/x.json", "c:images")
    for file in ("a:b/x", "a:b/y.json"):
        Path(file).touch()
    assert parse_dataset_name("coco:a:b/x:c:images") == CocoDataset("a:b/x", "c:images")
    assert parse_dataset_name("coco:a:b/y.json") == CocoDataset("a:b/y.json", None)


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_dataset_name("coco:~/a.json:~/images") == CocoDataset("/home/me/a.json", "/home/me/images")
    assert parse_dataset_name("voc:~/VOC:train") == VocDataset("/home/me/VOC", "train")


@pytest.mark.parametrize("images", [".", "images", "../images", "../images/train", "../train"])
def test_images_are_found_where_tools_put_them(tmp_path: Path, images: str) -> None:
    (tmp_path / "annotations").mkdir()
    json_file = tmp_path / "annotations/instances_train.json"
    write_coco(tmp_path, coco_content(CONTENT))
    (tmp_path / "boxes.json").rename(json_file)
    with pytest.raises(FileNotFoundError, match=r"instances_train\.json were not found: 'a\.jpg' is in none"):
        register_dataset(f"coco:{json_file}")
    folder = (json_file.parent / images).resolve()
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "a.jpg").touch()
    register_dataset(f"coco:{json_file}")
    assert DatasetCatalog.get(f"coco:{json_file}")[0]["file_name"] == str(folder / "a.jpg")


def test_a_folder_that_does_not_exist_is_named_with_the_form(tmp_path: Path) -> None:
    name = write_coco(tmp_path, coco_content(CONTENT))
    with pytest.raises(FileNotFoundError, match=r"images:80, does not exist\. .*'coco:<json>:<image folder>"):
        register_dataset(f"{name}:80")


class _Store(PathHandler):
    """Files behind URLs that start with ``store://``."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _get_supported_prefixes(self) -> list[str]:
        return ["store://"]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> Any:
        return open(self.folder / path.removeprefix("store://"), mode)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    PathManager.register_handler(_Store(tmp_path))
    yield tmp_path
    del PathManager._path_handlers["store://"]


def test_files_and_images_behind_urls_are_read(store: Path, tiny_cfg: Any) -> None:
    write_coco(store, coco_content(CONTENT))
    write_images(store / "images", CONTENT)
    records = report_dataset("coco:store://boxes.json:store://images", num_classes=3, num_proposals=9)
    mapped = DetectionMapper(tiny_cfg, is_train=True)(records[0])
    assert mapped["file_name"] == "store://images/a.jpg" and len(mapped["instances"]) == 3
    with pytest.raises(FileNotFoundError, match=r"store://none\.json cannot be read"):
        register_dataset("coco:store://none.json:store://images")


def test_errors_of_servers_that_need_more_than_a_message_are_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise HTTPError("https://server/a.json", 403, "Forbidden", Message(), None)

    monkeypatch.setattr(_Store, "_open", refuse)
    with pytest.raises(OSError, match=r"Annotation file store://a\.json cannot be read: HTTP Error 403: Forbidden"):
        read_text("store://a.json")


@dataclass(frozen=True)
class CsvLines(DatasetFormat):
    """Lines of an image, a class and corners, beside the images."""

    prefix: ClassVar[str] = "csv"
    form: ClassVar[str] = "csv:<file>"

    file: Path

    @classmethod
    def parse(cls, rest: str) -> CsvLines:
        if not rest.endswith(".csv"):
            raise ValueError("the file has to end in .csv")
        return cls(Path(rest))

    def classes(self) -> Classes:
        return Classes.numbered_from_zero(tuple(sorted({row[1] for row in self._rows()})))

    def records(self, classes: Classes) -> list[dict[str, Any]]:
        records: dict[str, dict[str, Any]] = {}
        for image, name, *corners in self._rows():
            file = self.file.parent / image
            width, height = Image.open(file).size
            size = {"height": height, "width": width, "annotations": []}
            record = records.setdefault(image, {"file_name": str(file), "image_id": image, **size})
            box = {"bbox": list(map(float, corners)), "bbox_mode": BoxMode.XYXY_ABS}
            record["annotations"].append(box | {"category_id": classes.names.index(name)})
        return list(records.values())

    def metadata(self) -> dict[str, Any]:
        return {"delimiter": ","}

    def _rows(self) -> list[list[str]]:
        return list(csv.reader(self.file.read_text().splitlines()))


@pytest.fixture
def csv_name(tmp_path: Path) -> Iterator[str]:
    DATASET_FORMAT_REGISTRY.register(CsvLines)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((80, 120, 3), np.uint8))
    (tmp_path / "boxes.csv").write_text("a.png,cell,0,0,40,40\na.png,ant,10,20,80.5,60\n")
    yield f"csv:{tmp_path}/boxes.csv"
    del DATASET_FORMAT_REGISTRY._obj_map["CsvLines"]


def test_a_format_added_from_outside_is_checked_loaded_and_evaluated(csv_name: str, tmp_path: Path) -> None:
    check_same_classes([csv_name])
    metadata = MetadataCatalog.get(csv_name)
    assert (metadata.thing_classes, metadata.delimiter) == (["ant", "cell"], ",")
    assert len(report_dataset(csv_name, num_classes=2, num_proposals=10)[0]["annotations"]) == 2
    (record,) = load_checked_dataset(csv_name, num_classes=2)
    assert (record["annotations"][1]["bbox"], record["annotations"][1]["category_id"]) == ([10, 20, 80.5, 60], 0)
    assert ap_of_ground_truth(csv_name, tmp_path / "output") == pytest.approx(100)


def test_errors_name_the_form_of_a_format_added_from_outside(csv_name: str) -> None:
    with pytest.raises(ValueError, match=r"'csv:x' does not have the form 'csv:<file>': the file has to end in \.csv"):
        register_dataset("csv:x")
    Path(csv_name.removeprefix("csv:")).write_text("a.png,cell,0,0,40\n")
    with pytest.raises(ValueError, match=r"1 annotations have a 'bbox' that is not four numbers.*a\.png"):
        load_checked_dataset(csv_name, num_classes=1)


@pytest.mark.parametrize("prefix", ["coco", "voc", "yolo"])
def test_parts_of_any_format_are_disjoint_complete_and_where_the_data_are_does_not_matter(
    tmp_path: Path, prefix: str
) -> None:
    paths = generate_shapes(tmp_path / "shapes", "train", ShapesConfig(num_images=10, image_size=64))
    source = f"coco:{paths.json_path}:{paths.image_folder}"
    chosen: list[list[list[str]]] = []
    for place in ("one", "two"):
        whole = convert_dataset(source, prefix, tmp_path / place, "train")
        names = [whole, *(f"{whole}:{part}" for part in ("0-80%", "80-100%", "0-80%:1"))]
        for name in names:
            register_dataset(name)
        chosen.append([[Path(record["file_name"]).name for record in DatasetCatalog.get(name)] for name in names])
    every, train, val, seeded = chosen[0]
    assert (len(every), len(train), len(val)) == (10, 8, 2)
    assert sorted(train + val) == sorted(every) and train == [file for file in every if file in train]
    assert seeded != train and len(seeded) == 8
    assert chosen[0] == chosen[1]


def test_names_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    datasets = []
    for form in ("NFC", "NFD"):
        name, folder = unicodedata.normalize(form, "caf\u00e9"), tmp_path / form
        coco = coco_content({})
        datasets.append(write_coco(folder, coco | {"categories": [{"id": 1, "name": name}], "images": [IMAGE]}))
        write_voc(folder / "voc", {"a": [Box(name, (0, 0, 9, 9))]})
        (folder / "images.txt").write_text("a.jpg")
        (folder / "data.yaml").write_text(f"{{names: [{name}], train: images.txt}}", encoding="utf-8")
        datasets += [f"voc:{folder}/voc:train", f"yolo:{folder}/data.yaml:train"]
    check_same_classes(datasets)
    assert {tuple(MetadataCatalog.get(name).thing_classes) for name in datasets} == {("caf\u00e9",)}
