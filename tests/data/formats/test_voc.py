import logging
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from written_datasets import CONTENT, HEIGHT, WIDTH, registered, table, write_split, write_voc

from dynamic_sparse_rcnn.data.datasets import register_dataset


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "voc"
    write_voc(folder, CONTENT)
    return folder


def test_voc_classes_are_those_of_all_annotations_in_every_split(voc_folder: Path) -> None:
    write_split(voc_folder, "val", ["c"])
    for split in ("train", "val"):
        name = registered(f"voc:{voc_folder}:{split}")
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == ["ant", "bee", "cell"]
        assert (metadata.dirname, metadata.split, metadata.year) == (str(voc_folder), split, 2012)
        assert metadata.evaluator_type == "coco"


def test_voc_reads_size_image_id_and_images_of_any_suffix(tmp_path: Path) -> None:
    write_voc(tmp_path, CONTENT, suffix=".PNG")
    record = DatasetCatalog.get(registered(f"voc:{tmp_path}:train"))[0]
    assert record["file_name"] == str(tmp_path / "JPEGImages" / "a.PNG")
    assert (record["image_id"], record["height"], record["width"]) == ("a", HEIGHT, WIDTH)


def test_voc_split_may_have_one_line_or_a_second_column_or_spaces(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": CONTENT["a"], "b 1": CONTENT["b"]})
    write_split(tmp_path, "one", ["a"])
    write_split(tmp_path, "flags", ["a  1", "", "b 1"])
    assert list(table(registered(f"voc:{tmp_path}:one"))) == ["a"]
    assert list(table(registered(f"voc:{tmp_path}:flags"))) == ["a", "b 1"]


def test_voc_image_named_twice_is_used_once_with_a_warning(
    voc_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # detectron2's logger of the package may not propagate.
    monkeypatch.setattr(logging.getLogger("dynamic_sparse_rcnn"), "propagate", True)
    write_split(voc_folder, "twice", ["a", "b", "a"])
    assert list(table(registered(f"voc:{voc_folder}:twice"))) == ["a", "b"]
    assert len({record.getMessage() for record in caplog.records}) == 1
    assert "twice.txt repeats image names on 1 lines" in caplog.text


def test_missing_voc_files_are_named(voc_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere, does not exist"):
        register_dataset(f"voc:{tmp_path}/nowhere:train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No \*\.xml files in .*empty/Annotations"):
        register_dataset(f"voc:{tmp_path}/empty:train")
    with pytest.raises(FileNotFoundError, match=r"test\.txt does not exist. Splits found: train"):
        DatasetCatalog.get(registered(f"voc:{voc_folder}:test"))
    write_split(voc_folder, "more", ["a", "x", "y"])
    with pytest.raises(FileNotFoundError, match=r"more\.txt lists 2 images without annotations.*/x\.xml"):
        DatasetCatalog.get(registered(f"voc:{voc_folder}:more"))


@pytest.mark.parametrize(
    ("found", "replacement", "reason"),
    [
        ("</annotation>", "", "is not valid XML"),
        ("<name>cell</name>", "", "has no <name>"),
        (f"<width>{WIDTH}</width>", "", "<size/width> is missing"),
        (f"<width>{WIDTH}</width>", "<width>0</width>", "<size> is 0 x 80"),
        ("<xmin>1</xmin>", "<xmin>left</xmin>", "<bndbox/xmin> is 'left'"),
    ],
)
def test_unusable_voc_annotation_is_named(voc_folder: Path, found: str, replacement: str, reason: str) -> None:
    path = voc_folder / "Annotations" / "a.xml"
    assert found in path.read_text()
    path.write_text(path.read_text().replace(found, replacement))
    with pytest.raises(ValueError, match=rf"a\.xml.*{reason}"):
        DatasetCatalog.get(registered(f"voc:{voc_folder}:train"))


def test_voc_folder_without_objects_is_an_error(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": []})
    with pytest.raises(ValueError, match=r"None of the 1 files .* has an <object>"):
        register_dataset(f"voc:{tmp_path}:train")


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ("utf-8", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("latin-1", "latin-1"),
        ("gb2312", "gb2312"),
        ("shift_jis", "shift_jis"),
        ("ansi", "utf-8"),
    ],
)
def test_voc_annotations_of_any_declared_encoding_are_read(voc_folder: Path, declared: str, written: str) -> None:
    class_name = {"latin-1": "größer", "gb2312": "细胞", "shift_jis": "細胞"}.get(declared, "größer 細胞")
    file = voc_folder / "Annotations/a.xml"
    text = file.read_text().replace("cell", class_name)
    file.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{text}'.encode(written))
    assert class_name in MetadataCatalog.get(registered(f"voc:{voc_folder}:train")).thing_classes
    assert table(f"voc:{voc_folder}:train")["a"][class_name, (0, 0, WIDTH, HEIGHT)] == 1


@pytest.mark.parametrize(
    "content",
    [
        '<?xml version="1.0" encoding="ansi"?><annotation><object><name>größer</name></object></annotation>'.encode(
            "latin-1"
        ),
        '<?xml version="1.0" encoding="gb2312"?><annotation>\ufffd</annotation>'.encode(),
        b"",
        b"\x00" * 50,
        b"<a>" * 50_000,
    ],
)
def test_voc_annotations_that_cannot_be_decoded_are_named(voc_folder: Path, content: bytes) -> None:
    (voc_folder / "Annotations/a.xml").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.xml is not valid XML: .* Repair it \(save it as UTF-8\)"):
        register_dataset(f"voc:{voc_folder}:train")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_voc_splits_may_have_a_byte_order_mark_and_backslashes(tmp_path: Path, encoding: str) -> None:
    write_voc(tmp_path, {"été": CONTENT["a"], "b": CONTENT["b"]})
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (tmp_path / folder / "sub").mkdir()
        (tmp_path / folder / f"b.{suffix}").rename(tmp_path / folder / f"sub/b.{suffix}")
    (tmp_path / "ImageSets/Main/train.txt").write_bytes("été\r\nsub\\b\r\n".encode(encoding))
    records = DatasetCatalog.get(registered(f"voc:{tmp_path}:train"))
    assert [record["image_id"] for record in records] == ["été", "sub/b"]
    assert Path(records[1]["file_name"]).is_file()


def test_a_voc_split_in_another_encoding_is_named(voc_folder: Path) -> None:
    (voc_folder / "ImageSets/Main/train.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.txt is not utf-8 text: .* Save it as UTF-8"):
        DatasetCatalog.get(registered(f"voc:{voc_folder}:train"))


def test_spaces_around_a_voc_class_name_are_none_of_it(voc_folder: Path) -> None:
    file = voc_folder / "Annotations/a.xml"
    file.write_text(file.read_text().replace("<name>cell</name>", "<name>\n  cell </name>", 1))
    assert MetadataCatalog.get(registered(f"voc:{voc_folder}:train")).thing_classes == ["ant", "bee", "cell"]
