"""A run from the command line and its data sets: what is told, left out, or stops it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from small_runs import read_metrics
from written_datasets import HEIGHT, WIDTH, Box, write_voc

from dynamic_sparse_rcnn import add_dynamic_sparse_rcnn_config
from dynamic_sparse_rcnn.engine.trainer import Trainer


def test_a_test_set_with_the_training_sets_classes_in_another_order_is_not_evaluated(run, shapes, tmp_path):
    run("SOLVER.MAX_ITER", "1")
    weights = ["--eval-only", "MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth")]
    _, json_path, images = shapes.split(":")
    content = json.loads(Path(json_path).read_text())
    content["categories"][0]["id"], content["categories"][1]["id"] = 2, 1
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = ["DATASETS.TEST", f"('coco:{tmp_path}/other.json:{images}',)", "MODEL.SparseRCNN.NUM_CLASSES", "5"]
    with pytest.raises(ValueError, match=r"different classes.*same names, but in another order .* from class 0 on"):
        run(*weights, *other)
    # Where the training set is not there, the checkpoint knows.
    for train in ("('coco_2017_train',)", "()"):
        with pytest.raises(
            ValueError, match=r"model_final\.pth was trained on other classes.*in another order .* class 0"
        ):
            run(*weights, *other, "DATASETS.TRAIN", train)


def test_a_data_set_that_is_no_list_is_an_error_that_shows_the_list(run):
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN \"\('name',\)\""):
        run("DATASETS.TRAIN", "coco:a.json:b")


def test_evaluation_needs_no_training_annotations(run, tmp_path):
    run("SOLVER.MAX_ITER", "1")
    weights = str(tmp_path / "run/model_final.pth")
    nowhere = "('coco:nowhere.json:nowhere',)"
    results = run(
        "--eval-only", "MODEL.WEIGHTS", weights, "DATASETS.TRAIN", nowhere, "MODEL.SparseRCNN.NUM_CLASSES", "5"
    )
    assert "AP" in results["bbox"]
    assert (
        "have the classes of the training set: Annotation file nowhere.json" in (tmp_path / "run/log.txt").read_text()
    )


def test_a_test_set_that_cannot_be_used_stops_the_run_before_the_training(run, shapes, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        run("DATASETS.TEST", "('coco:nowhere.json:nowhere',)")
    _, json_path, images = shapes.split(":")
    content = json.loads(Path(json_path).read_text())
    for category in content["categories"]:
        category["id"] = 6 - category["id"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="different classes"):
        run("DATASETS.TEST", f"('coco:{other}:{images}',)")
    assert not list(tmp_path.glob("run/*.pth"))


def test_images_without_objects_are_trained_on_unless_the_config_leaves_them_out(run, shapes, tmp_path):
    _, json_path, images = shapes.split(":")
    content = json.loads(Path(json_path).read_text())
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] == 1]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(content))
    few_objects = ["DATASETS.TRAIN", f"('coco:{few}:{images}',)", "SOLVER.MAX_ITER", "1"]
    run(*few_objects)
    log = tmp_path / "run/log.txt"
    assert log.read_text().count("Serializing 6 elements") == 2  # for training and evaluation
    run(*few_objects, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True", "OUTPUT_DIR", str(tmp_path / "without"))
    assert "Serializing 1 elements" in (tmp_path / "without/log.txt").read_text()


def test_training_without_any_box_is_an_error_that_names_the_set(run, shapes, tmp_path):
    _, json_path, images = shapes.split(":")
    content = json.loads(Path(json_path).read_text())
    del content["annotations"]
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bare\.json.* have no usable box to learn from\. Name"):
        run("DATASETS.TRAIN", f"('coco:{bare}:{images}',)")


def test_a_damaged_image_is_left_out_of_the_training_and_stops_an_evaluation(run, shapes, tmp_path):
    _, json_path, images = shapes.split(":")
    shutil.copytree(images, tmp_path / "images")
    damaged = sorted((tmp_path / "images").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-30])
    name = f"('coco:{json_path}:{tmp_path / 'images'}',)"
    with pytest.raises(ValueError, match=rf"1 of 6 images of coco:.* {damaged}.*cannot be read.*replace it"):
        run("DATASETS.TEST", name)
    run("DATASETS.TRAIN", name, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")
    log = (tmp_path / "run/log.txt").read_text()
    assert f"WARNING: images dropped: 1 cannot be used, first: {damaged}" in log
    assert "Serializing 5 elements" in log


def test_a_voc_folder_is_trained_on_and_evaluated(run, tmp_path):
    content = {name: [Box("ant", (10, 20, 40, 60)), Box("bee", (50, 5, 110, 70))] for name in ("a", "b")}
    write_voc(tmp_path / "voc", content)
    for name in content:
        cv2.imwrite(str(tmp_path / f"voc/JPEGImages/{name}.jpg"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    voc = f"('voc:{tmp_path / 'voc'}:train',)"
    run("DATASETS.TRAIN", voc, "DATASETS.TEST", voc, "SOLVER.MAX_ITER", "1", "TEST.VOC_METRIC", "voc2007")
    assert {"bbox/AP", "voc2007/AP50"} <= read_metrics(tmp_path / "run")[-1].keys()


def test_test_images_are_neither_flipped_nor_shuffled(run, shapes, tmp_path):
    run("SOLVER.MAX_ITER", "1")
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(tmp_path / "run/config.yaml"))
    for inputs, record in zip(Trainer.build_test_loader(cfg, shapes), DatasetCatalog.get(shapes), strict=True):
        pixels = read_image(record["file_name"], format="RGB")
        assert np.array_equal(inputs[0]["image"].numpy(), pixels.transpose(2, 0, 1))


def test_a_set_with_too_many_boxes_an_image_is_told_at_the_start(run, tmp_path):
    run("MODEL.SparseRCNN.NUM_PROPOSALS", "1", "SOLVER.MAX_ITER", "1")
    log = (tmp_path / "run/log.txt").read_text()
    assert re.search(r"6 images, \d+ boxes, 5 classes", log)
    assert re.search(r"WARNING: .*NUM_PROPOSALS", log)
