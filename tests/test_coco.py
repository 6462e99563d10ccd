from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from written_datasets import CONTENT, coco_content, registered, write_coco

from dynamic_sparse_rcnn.data.datasets import register_dataset


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


def test_missing_coco_files_are_named(tmp_path: Path, coco_name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        register_dataset(f"coco:{tmp_path}/none.json:{tmp_path}")
    json_file = coco_name.split(":")[1]
    name = f"coco:{json_file}:{tmp_path}/no_images"
    with pytest.raises(FileNotFoundError, match="no_images, does not exist"):
        register_dataset(name)
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


def test_coco_content_that_detectron2_refuses_names_the_file(tmp_path: Path) -> None:
    coco = coco_content(CONTENT)
    del coco["images"][0]["height"]
    name = registered(write_coco(tmp_path, coco))
    with pytest.raises(ValueError, match=r"boxes\.json cannot be read .*height"):
        DatasetCatalog.get(name)
