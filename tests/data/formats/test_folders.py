"""A folder stands for the splits that its data set has."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from written_datasets import CONTENT, coco_content, registered, table, write_images, write_split, write_voc, write_yolo

from dynamic_sparse_rcnn.data.formats import expand_folders, find_splits


def write_coco_files(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(coco_content(CONTENT)))


@pytest.mark.parametrize(
    ("files", "images"),
    [
        ({"train": "annotations/train.json", "val": "annotations/valid.json"}, "images"),
        ({"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"}, "train2017"),
        ({"train": "train/_annotations.coco.json", "test": "test/_annotations.coco.json"}, "train"),
    ],
)
def test_coco_files_are_found_where_coco_and_annotation_tools_put_them(tmp_path, files, images):
    write_coco_files(tmp_path, *files.values(), "annotations/captions.json")
    write_images(tmp_path / images, CONTENT)
    assert find_splits(str(tmp_path)) == {split: f"coco:{tmp_path / file}" for split, file in files.items()}
    (name,) = expand_folders([str(tmp_path)], "train")
    assert table(registered(name)).keys() == CONTENT.keys()


def test_of_cocos_own_files_those_with_boxes_are_taken(tmp_path):
    kinds, splits = ("captions", "instances", "person_keypoints"), ("train", "val")
    write_coco_files(tmp_path, *(f"annotations/{kind}_{split}2017.json" for kind in kinds for split in splits))
    boxes = {split: f"coco:{tmp_path}/annotations/instances_{split}2017.json" for split in splits}
    assert find_splits(str(tmp_path)) == boxes


def test_splits_of_a_data_yaml_without_images_are_left_out_and_missing_paths_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("dynamic_sparse_rcnn"), "propagate", True)
    write_yolo(tmp_path, CONTENT)
    with open(tmp_path / "data.yaml", "a") as file:
        file.write("val: [train/images]\ntest:\n")
    name = f"yolo:{tmp_path}"
    assert expand_folders([str(tmp_path)], "test", "val") == [f"{name}:val"]
    assert not caplog.records
    with pytest.raises(ValueError, match=r"no images of the split 'test'; its other keys are train, val\."):
        registered(f"{name}:test")
    (tmp_path / "data.yaml").write_text((tmp_path / "data.yaml").read_text().replace("test:", "test: nowhere"))
    for _ in range(2):
        assert find_splits(str(tmp_path)) == {split: f"{name}:{split}" for split in ("train", "val")}
    (record,) = caplog.records
    assert f"{tmp_path}/data.yaml: test is 'nowhere', but {tmp_path}/nowhere do not exist" in record.getMessage()


def test_each_layout_is_found(tmp_path):
    write_coco_files(tmp_path / "coco", "annotations/train.json")
    write_images(tmp_path / "coco/images", CONTENT)
    write_voc(tmp_path / "voc", CONTENT)
    write_split(tmp_path / "voc", "val", list(CONTENT)[:1])
    write_yolo(tmp_path / "yolo", CONTENT)
    names = expand_folders([str(tmp_path / layout) for layout in ("coco", "voc", "yolo")], "train")
    assert names[1:] == [f"voc:{tmp_path}/voc:train", f"yolo:{tmp_path}/yolo:train"]
    images = [len(table(registered(name))) for name in names]
    assert images == 3 * [len(CONTENT)]
    assert find_splits(str(tmp_path / "voc"))["val"] == f"voc:{tmp_path}/voc:val"


def test_names_that_are_no_folders_are_kept_and_all_splits_are_given_without_a_wish(tmp_path):
    write_coco_files(tmp_path, "annotations/train.json", "annotations/test.json")
    assert expand_folders(["coco_2017_val", "coco:a.json:b"], "train") == ["coco_2017_val", "coco:a.json:b"]
    assert expand_folders([str(tmp_path)]) == [f"coco:{tmp_path}/annotations/{x}.json" for x in ("test", "train")]


def test_folders_without_the_split_or_any_data_set_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no train, val or test split was found.*coco:<json>"):
        expand_folders([str(tmp_path)], "train")
    write_coco_files(tmp_path, "annotations/train.json")
    with pytest.raises(ValueError, match=r"has the splits \['train'\], but test or val is needed here: name one of"):
        expand_folders([str(tmp_path)], "test", "val")
