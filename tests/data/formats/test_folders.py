"""A folder stands for the splits that its data set has."""

from __future__ import annotations

import json
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
