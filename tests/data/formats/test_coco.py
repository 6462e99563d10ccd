import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from written_datasets import CONTENT, ap_of_ground_truth, coco_content, registered, write_coco

from dynamic_sparse_rcnn.data.checks import load_checked_dataset
from dynamic_sparse_rcnn.data.datasets import register_dataset
from dynamic_sparse_rcnn.data.ground_truth import ensure_coco_json

BCCD = Path(os.environ.get("BCCD_FOLDER", "-"))


@pytest.fixture
def coco_name(tmp_path: Path) -> str:
    return write_coco(tmp_path / "coco", coco_content(CONTENT))


def test_coco_classes_are_those_of_detectron2(coco_name: str) -> None:
    _, json_file, image_root = coco_name.split(":")
    expected_dicts = load_coco_json(json_file, image_root, "detectron2_own")
    expected = MetadataCatalog.get("detectron2_own")
    register_dataset(coco_name)
    metadata = MetadataCatalog.get(coco_name)
    assert metadata.thing_classes == expected.thing_classes == ["ant", "cell", "bee"]
    assert metadata.thing_dataset_id_to_contiguous_id == expected.thing_dataset_id_to_contiguous_id
    assert (metadata.json_file, metadata.image_root, metadata.evaluator_type) == (
        json_file,
        image_root,
        "coco",
    )
    assert DatasetCatalog.get(coco_name) == expected_dicts


@pytest.mark.skipif(not BCCD.is_dir(), reason="BCCD_FOLDER does not name the folder of the BCCD data set")
def test_real_annotations_are_read_as_detectron2_reads_them() -> None:
    json_file, images = f"{BCCD}/annotations_coco/train.json", f"{BCCD}/JPEGImages"
    read = DatasetCatalog.get(registered(f"coco:{json_file}:{images}"))
    areas = [annotation.pop("area") for record in read for annotation in record["annotations"]]
    assert read == load_coco_json(json_file, images, "real annotations")
    assert sorted(areas) == sorted(a["area"] for a in json.loads(Path(json_file).read_text())["annotations"])


def test_missing_coco_files_are_named(tmp_path: Path, coco_name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        register_dataset(f"coco:{tmp_path}/none.json:{tmp_path}")
    json_file = coco_name.split(":")[1]
    name = f"coco:{json_file}:{tmp_path}/no_images"
    with pytest.raises(FileNotFoundError, match="no_images, does not exist"):
        register_dataset(name)
    with pytest.raises(FileNotFoundError, match=r"boxes\.json, is a file"):
        register_dataset(f"coco:{json_file}:{json_file}")
    with pytest.raises(FileNotFoundError, match=rf"Annotation file {tmp_path} is a folder"):
        register_dataset(f"coco:{tmp_path}:{tmp_path}")
    assert name not in DatasetCatalog


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotation/>", "is not a JSON file"),
        ("[]", "no list of 'images'"),
        ('{"images": [], "categories": [{"id": 1, "name": "x"}]}', "no list of 'images'"),
        ('{"images": [{"id": 1}]}', "no list of 'categories'"),
        ('{"images": [{"id": 1}], "categories": [{"id": 1}]}', "needs a 'name'"),
        ('{"images": [{"id": 1}], "categories": [{"name": "x"}]}', "distinct integers"),
        ('{"images": [{"id": 1}], "categories": [{"id": 1, "name": "x"}, {"id": 1}]}', "distinct integers"),
    ],
)
def test_unusable_coco_file_is_named_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"boxes\.json.*{reason}"):
        register_dataset(f"coco:{path}:{tmp_path}")


def test_coco_annotation_of_an_unknown_category_is_named(tmp_path: Path) -> None:
    coco = coco_content(CONTENT)
    coco["annotations"][-1]["category_id"] = 77
    with pytest.raises(ValueError, match=r"boxes\.json: 1 annotations .* \[77\] \(first images: b\.jpg\)"):
        register_dataset(write_coco(tmp_path, coco))
    coco["annotations"][-1]["category_id"] = "dog"
    with pytest.raises(ValueError, match=r"boxes\.json: 1 annotations .* \[dog\] \(first images: b\.jpg\)"):
        register_dataset(write_coco(tmp_path, coco))


@pytest.mark.parametrize("segmentation", [5, [[]], [[1, 2, 3, 4]], {"counts": "?"}])
def test_objects_are_kept_whatever_their_segmentation(tmp_path: Path, coco_name: str, segmentation: Any) -> None:
    coco = coco_content(CONTENT)
    for annotation in coco["annotations"]:
        annotation["segmentation"] = segmentation
    dicts = DatasetCatalog.get(registered(write_coco(tmp_path, coco)))
    expected = DatasetCatalog.get(registered(coco_name))
    assert [record["annotations"] for record in dicts] == [record["annotations"] for record in expected]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"iscrowd": "0"}, r"1 annotations have 'iscrowd' '0' \(first images: b\.jpg\)\. Write 0 or 1"),
        ({"iscrowd": None}, "1 annotations have 'iscrowd' None"),
        ({"ignore": 1}, "1 annotations have 'ignore' 1 .* Set 'iscrowd' 1"),
    ],
)
def test_flags_that_would_not_mean_what_they_say_are_named(tmp_path: Path, flags: dict[str, Any], reason: str) -> None:
    coco = coco_content(CONTENT)
    coco["annotations"][-1] |= flags
    with pytest.raises(ValueError, match=rf"boxes\.json: {reason}"):
        register_dataset(write_coco(tmp_path, coco))
    coco["annotations"][-1] |= {"iscrowd": 1, "ignore": 0}
    name = registered(write_coco(tmp_path / "other", coco))
    assert [o.get("iscrowd") for record in DatasetCatalog.get(name) for o in record["annotations"]][-1] == 1


@pytest.mark.parametrize("ids", [[1] * 5, [None] * 5, [3, 2, 1, 0, 7]])
def test_ids_of_annotations_need_not_be_distinct_or_there(tmp_path: Path, ids: list[int | None]) -> None:
    coco = coco_content(CONTENT)
    for annotation, own in zip(coco["annotations"], ids, strict=True):
        annotation["id"] = own
    name = registered(write_coco(tmp_path, coco))
    assert [len(record["annotations"]) for record in DatasetCatalog.get(name)] == [3, 2, 0]
    ensure_coco_json(name, str(tmp_path / "output"))
    written = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert [annotation["id"] for annotation in written["annotations"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": 2}, r"1 ids of 'images' are used more than once, first: \[2\] \(a\.jpg, b\.jpg\)\. Give each"),
        (
            {"width": "120"},
            r"'images'\[0\] has 'width' '120', which is not a positive integer: .*a\.jpg.*Correct",
        ),
        ({"height": 0}, "has 'height' 0, which"),
        ({"height": 79.5}, r"has 'height' 79\.5, which"),
        ({"height": float("nan")}, "has 'height' nan, which"),
        ({"width": None}, "has 'width' None, which"),
        ({"id": None}, "has no 'id'"),
        ({"id": "2"}, r"1 ids of 'images' are used more than once, first: \[2\]"),
        ({"id": True}, "has no 'id'"),
        ({"id": 1 << 60}, "has no 'id'"),
        ({"width": 10**400}, "has 'width' 1000+, which"),
        ({"file_name": 5}, "has no 'file_name'"),
    ],
)
def test_coco_images_that_cannot_be_told_apart_or_have_no_size_are_named(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    coco = coco_content(CONTENT)
    coco["images"][0] |= change
    with pytest.raises(ValueError, match=rf"boxes\.json: .*{reason}"):
        register_dataset(write_coco(tmp_path, coco))


@pytest.mark.parametrize("annotations", [None, {"1": []}, [[1, 2]]])
def test_coco_annotations_that_are_no_list_of_objects_are_named(tmp_path: Path, annotations: Any) -> None:
    with pytest.raises(ValueError, match=r"boxes\.json: 'annotations' is not a list"):
        register_dataset(write_coco(tmp_path, coco_content(CONTENT) | {"annotations": annotations}))


def test_coco_annotations_of_images_that_are_not_listed_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dynamic_sparse_rcnn"), "propagate", True)
    coco = coco_content(CONTENT)
    coco["annotations"][0]["image_id"] = 99
    coco["annotations"][1]["image_id"] = "first"
    name = registered(write_coco(tmp_path, coco))
    dicts = DatasetCatalog.get(name)
    assert [len(record["annotations"]) for record in dicts] == [1, 2, 0]
    ensure_coco_json(name, str(tmp_path / "output"))
    assert len(json.loads(Path(MetadataCatalog.get(name).json_file).read_text())["annotations"]) == 3
    assert "boxes.json: 2 annotations are dropped: their 'image_id'" in caplog.text
    assert "first: [99, 'first']" in caplog.text


def images_of(name: str) -> set[str]:
    return {Path(record["file_name"]).name for record in DatasetCatalog.get(registered(name))}


def test_parts_of_one_coco_file_are_disjoint_complete_and_seeded(tmp_path: Path) -> None:
    whole = write_coco(tmp_path, coco_content({f"image{i}": CONTENT["a"] for i in range(50)}))
    train, val, rest = (images_of(f"{whole}:{part}") for part in ("0-70%", "70-85%", "85-100%"))
    assert [len(part) for part in (train, val, rest)] == [35, 7, 8]
    assert train | val | rest == images_of(whole)
    assert len(train) + len(val) + len(rest) == 50
    assert images_of(f"{whole}:0-70%:0") == train
    assert images_of(f"{whole}:0-70%:1") != train


def test_parts_do_not_depend_on_the_order_of_the_images_or_the_folder(tmp_path: Path) -> None:
    coco = coco_content({f"image{i}": CONTENT["a"] for i in range(20)})
    first = images_of(write_coco(tmp_path / "first", coco) + ":0-50%")
    coco["images"].reverse()
    assert images_of(write_coco(tmp_path / "second", coco) + ":0-50%") == first


def test_a_part_without_images_is_an_error(tmp_path: Path) -> None:
    name = write_coco(tmp_path, coco_content(CONTENT)) + ":0-1%"
    with pytest.raises(ValueError, match="has no images"):
        load_checked_dataset(name, num_classes=3)


@pytest.mark.parametrize("part", ["80%", "80-20%", "0-101%", "50-50%", "0-50%:x", "0-50%:-1"])
def test_a_part_that_means_nothing_shows_the_form(tmp_path: Path, part: str) -> None:
    name = write_coco(tmp_path, coco_content(CONTENT))
    with pytest.raises(ValueError, match=r"coco:<json>:<image folder>\[:<from>-<to>%"):
        register_dataset(f"{name}:{part}")


def test_a_part_is_evaluated_against_its_own_images_alone(tmp_path: Path) -> None:
    coco = coco_content({f"image{i}": CONTENT["a"] for i in range(10)})
    name = write_coco(tmp_path, coco) + ":0-30%"
    ensure_coco_json(name, str(tmp_path / "output"))
    written = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert {Path(image["file_name"]).name for image in written["images"]} == images_of(name)
    assert len(written["annotations"]) == 3 * len(CONTENT["a"])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("dynamic_sparse_rcnn"), "propagate", True)
    return caplog


@pytest.mark.parametrize("area", [None, "9", [], -1, float("nan"), True, 1e300])
def test_an_area_that_is_none_is_replaced_by_that_of_the_box_and_counted(
    tmp_path: Path, area: Any, log: pytest.LogCaptureFixture
) -> None:
    coco = coco_content(CONTENT)
    coco["annotations"][0]["area"], coco["annotations"][1]["area"] = area, 7.5
    name = registered(write_coco(tmp_path, coco))
    assert ap_of_ground_truth(name, tmp_path / "output") == pytest.approx(100)
    written = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())["annotations"]
    assert [a["area"] for a in written[:3]] == [120 * 80 if area != 1e300 else 1e10, 7.5, 60 * 65]
    expected = "boxes.json: 1 annotations have an 'area' that is no number or negative, first:"
    assert all(expected in warning for warning in warnings_of(log))
    assert bool(warnings_of(log)) == (area != 1e300)


def test_two_categories_of_one_name_are_refused(tmp_path: Path) -> None:
    coco = coco_content(CONTENT)
    coco["categories"][1]["name"] = " cell"
    with pytest.raises(ValueError, match=r"boxes\.json.* first: 'cell' by the categories \[7, 9\]\. Give each"):
        register_dataset(write_coco(tmp_path, coco))


@pytest.mark.parametrize("written", [str, float])
def test_ids_written_as_text_or_with_a_point_are_the_same_ids(tmp_path: Path, coco_name: str, written: type) -> None:
    expected = DatasetCatalog.get(registered(coco_name))
    for keys in (("image_id",), ("category_id",), ("image_id", "category_id")):
        coco = coco_content(CONTENT)
        for annotation in coco["annotations"]:
            annotation |= {key: written(annotation[key]) for key in keys}
        dicts = DatasetCatalog.get(registered(write_coco(tmp_path / str(keys), coco)))
        assert [record["annotations"] for record in dicts] == [record["annotations"] for record in expected]
    coco = coco_content(CONTENT)
    for entry in (*coco["images"], *coco["categories"]):
        entry["id"] = written(entry["id"])
    name = registered(write_coco(tmp_path / "lists", coco))
    assert [record["annotations"] for record in DatasetCatalog.get(name)] == [r["annotations"] for r in expected]
    assert MetadataCatalog.get(name).thing_classes == ["ant", "cell", "bee"]
    assert [r["image_id"] for r in DatasetCatalog.get(name)] == (["1", "2", "3"] if written is str else [1, 2, 3])


def test_ids_of_images_that_are_names_stay_names(tmp_path: Path) -> None:
    coco = coco_content(CONTENT)
    for number, new in enumerate(("7", "007", "a")):
        for annotation in coco["annotations"]:
            if annotation["image_id"] == coco["images"][number]["id"]:
                annotation["image_id"] = new
        coco["images"][number]["id"] = new
    coco["annotations"][0]["image_id"] = 7
    name = registered(write_coco(tmp_path, coco))
    found = {record["image_id"]: len(record["annotations"]) for record in DatasetCatalog.get(name)}
    assert found == {"7": 3, "007": 2, "a": 0}
    assert ap_of_ground_truth(name, tmp_path / "output") == pytest.approx(100)


def test_backslashes_are_separators_where_only_then_there_is_a_file(tmp_path: Path) -> None:
    coco = coco_content({"a": CONTENT["a"], "b": [], "c": []})
    name = write_coco(tmp_path, coco)
    (tmp_path / "images/sub").mkdir()
    for file in ("sub/a.jpg", "sub\\b.jpg", "sub/b.jpg"):
        (tmp_path / "images" / file).touch()
    for image in coco["images"]:
        image["file_name"] = f"sub\\{image['file_name']}"
    write_coco(tmp_path, coco)
    files = [record["file_name"] for record in DatasetCatalog.get(registered(name))]
    assert files == [f"{tmp_path}/images/{file}" for file in ("sub/a.jpg", "sub\\b.jpg", "sub\\c.jpg")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gzip"])
def test_coco_files_of_other_encodings_are_read(tmp_path: Path, coco_name: str, encoding: str) -> None:
    coco = coco_content(CONTENT)
    coco["categories"][0]["name"] = "Zelle größer 細胞"
    name = write_coco(tmp_path, coco)
    text = json.dumps(coco, ensure_ascii=False)
    content = gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding)
    (tmp_path / "boxes.json").write_bytes(content)
    assert MetadataCatalog.get(registered(name)).thing_classes == ["ant", "Zelle größer 細胞", "bee"]
    assert [len(record["annotations"]) for record in DatasetCatalog.get(name)] == [3, 2, 0]


@pytest.mark.parametrize(
    "content",
    [
        '{"images": ["größer"]}'.encode("latin-1"),
        b"[" * 100_000,
        b'{"images": ' + b"[" * 50_000 + b"]" * 50_000 + b', "categories": []}',
        b'{"images": ' + b"9" * 5000 + b"}",
        b"\x1f\x8b broken",
        gzip.compress(b"{}", mtime=0)[:-4],
        b"",
        b"\x00" * 100,
    ],
)
def test_content_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    name = write_coco(tmp_path, coco_content(CONTENT))
    (tmp_path / "boxes.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"boxes\.json (is not a JSON file in UTF-8|is a damaged gzip file)"):
        register_dataset(name)


def test_names_that_are_halves_of_characters_are_refused(tmp_path: Path) -> None:
    coco = coco_content(CONTENT)
    coco["categories"][0]["name"] = "\ud800"
    with pytest.raises(ValueError, match=r"boxes\.json: each of the 'categories' needs a 'name'"):
        register_dataset(write_coco(tmp_path, coco))


def test_categories_that_change_during_a_run_are_an_error(tmp_path: Path, coco_name: str) -> None:
    register_dataset(coco_name)
    coco = coco_content(CONTENT)
    coco["categories"][0]["name"] = "other"
    write_coco(tmp_path / "coco", coco)
    with pytest.raises(ValueError, match=r"categories of .*boxes\.json have changed"):
        DatasetCatalog.get(coco_name)
