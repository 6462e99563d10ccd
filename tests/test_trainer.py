"""A run from the command line: set-up, training, checkpoints, evaluation, on a small generated set."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import cv2
import demo_shapes
import numpy as np
import pytest
import torch
import train_net
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import default_argument_parser
from written_datasets import HEIGHT, WIDTH, Box, write_voc

from dynamic_sparse_rcnn import SparseRCNN, add_dynamic_sparse_rcnn_config
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine.trainer import Trainer

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/shapes/sparse_rcnn_R_18_FPN_20pro.yaml"
TINY = [
    *("DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SparseRCNN.HIDDEN_DIM", "32", "MODEL.SparseRCNN.DIM_DYNAMIC", "8"),
    *("MODEL.SparseRCNN.NUM_PROPOSALS", "6", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_BATCH_SIZE", "0"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "()", "MODEL.DEVICE", "cpu"),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("shapes")
    paths = generate_shapes(folder, "train", ShapesConfig(num_images=6, image_size=64))
    return f"coco:{paths.json_path}:{paths.image_folder}"


@pytest.fixture
def run(shapes, tmp_path):
    """Runs ``tools/train_net.py`` in this process, on the tiny model and the generated set."""

    def run_main(*options: str):
        arguments = ["--config-file", str(CONFIG), *(x for x in options if x.startswith("--"))]
        pairs = [x for x in options if not x.startswith("--")]
        datasets = ["DATASETS.TRAIN", f"('{shapes}',)", "DATASETS.TEST", f"('{shapes}',)"]
        output = ["OUTPUT_DIR", str(tmp_path / "run")]
        return train_net.main(default_argument_parser().parse_args([*arguments, *TINY, *datasets, *output, *pairs]))

    return run_main


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_training_writes_checkpoints_metrics_and_an_evaluation(run, tmp_path):
    run()
    folder = tmp_path / "run"
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    saved = torch.load(folder / "model_final.pth")
    assert saved["iteration"] == 3
    assert saved["class_names"] == ["circle", "square", "triangle", "star", "ring"]
    assert "init_proposal_boxes.weight" in saved["model"]
    names = set().union(*read_metrics(folder))
    assert {"total_loss", "loss_ce", "loss_giou_0", "lr", "ground_truths_without_proposal"} <= names
    assert {"bbox/AP", "bbox/AP50", "bbox/AP75"} <= names
    assert list(folder.glob("events.out.tfevents.*"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["MODEL"]["SparseRCNN"]["NUM_CLASSES"] == 5


def test_resuming_goes_on_after_the_last_checkpoint(run, tmp_path):
    run("SOLVER.MAX_ITER", "2")
    run("--resume", "SOLVER.MAX_ITER", "4")
    assert torch.load(tmp_path / "run/model_final.pth")["iteration"] == 3
    steps = [
        torch.load(tmp_path / "run" / name)["trainer"]["_trainer"]["optimizer"]["state"][0]["step"].item()
        for name in ("model_0000001.pth", "model_final.pth")
    ]
    assert steps == [2, 4]


def test_evaluating_a_checkpoint_gives_the_training_runs_own_result(run, tmp_path):
    run()
    detections = tmp_path / "run/inference/coco_instances_results.json"
    trained = json.loads(detections.read_text())
    detections.unlink()
    run("--eval-only", "MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"), "SEED", "7")
    evaluated = json.loads(detections.read_text())
    assert len(trained) > 20
    assert [x["score"] for x in evaluated] == pytest.approx([x["score"] for x in trained], abs=1e-5)
    assert [x["image_id"] for x in evaluated] == [x["image_id"] for x in trained]


def test_evaluation_without_weights_is_an_error(run):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS"):
        run("--eval-only")


def test_resuming_without_a_checkpoint_says_so(run, tmp_path):
    run("--resume", "SOLVER.MAX_ITER", "1")
    assert "--resume finds no checkpoint" in (tmp_path / "run/log.txt").read_text()


def test_a_run_without_iterations_left_is_an_error(run, tmp_path):
    run("SOLVER.MAX_ITER", "2")
    before = (tmp_path / "run/model_final.pth").stat().st_mtime_ns
    for last in ("2", "1"):
        with pytest.raises(ValueError, match=rf"has done 2 iterations, and SOLVER\.MAX_ITER is {last}.*raise"):
            run("--resume", "SOLVER.MAX_ITER", last)
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER is 0: a training needs"):
        run("SOLVER.MAX_ITER", "0", "OUTPUT_DIR", str(tmp_path / "other"))
    assert (tmp_path / "run/model_final.pth").stat().st_mtime_ns == before


def test_resuming_and_starting_from_weights_are_told_apart(run, tmp_path):
    run("SOLVER.MAX_ITER", "1")
    folder, log = tmp_path / "run", tmp_path / "run/log.txt"
    weights = str(folder / "model_final.pth")
    assert "A new run starts at iteration 0, from random weights" in log.read_text()
    run("--resume", "MODEL.WEIGHTS", "never_read.pth", "SOLVER.MAX_ITER", "2")
    assert f"Going on with the run in {folder} from {weights}; MODEL.WEIGHTS is not read" in log.read_text()
    run("MODEL.WEIGHTS", weights, "SOLVER.MAX_ITER", "1")
    assert f"A new run starts at iteration 0, from the weights of {weights}" in log.read_text()
    assert f"{folder} holds the checkpoints of an earlier run, which this one will overwrite" in log.read_text()
    assert torch.load(weights)["iteration"] == 0


@pytest.mark.parametrize(("key", "value"), [("NUM_PROPOSALS", "7"), ("NUM_HEADS", "2"), ("NUM_HEADS", "4")])
def test_a_run_does_not_go_on_with_another_model(run, tmp_path, key, value):
    run("SOLVER.MAX_ITER", "1")
    with pytest.raises(ValueError, match=r"does not have the model .*config\.yaml of .*run; or start a new run"):
        run("--resume", f"MODEL.SparseRCNN.{key}", value)


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
    # What the model was not trained on says nothing of its classes.
    run(*weights, *other, "DATASETS.TRAIN", "('coco_2017_train',)")


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
        "classes of the training set is not known: Annotation file nowhere.json"
        in (tmp_path / "run/log.txt").read_text()
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


def test_the_demo_trains_evaluates_draws_and_ends_with_the_ap(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_shapes, "NUM_TRAIN_IMAGES", 4)
    monkeypatch.setattr(demo_shapes, "NUM_VAL_IMAGES", 2)
    demo_shapes.main(demo_shapes.parse_args([*TINY, "SOLVER.MAX_ITER", "1"]))
    assert re.fullmatch(r"bbox AP [\d.]+ AP50 [\d.]+ AP75 [\d.]+", capsys.readouterr().out.splitlines()[-1])
    for name in ("detections.png", "stages.png"):
        assert cv2.imread(str(tmp_path / "output/demo" / name)) is not None


def test_mixed_precision_trains_with_finite_losses_and_float32_weights(run, tmp_path, monkeypatch):
    seen = []
    predict = SparseRCNN.predict

    def spy(detector, images):
        predictions = predict(detector, images)
        seen.append((detector.training, predictions.logits.dtype, predictions.boxes.dtype))
        return predictions

    monkeypatch.setattr(SparseRCNN, "predict", spy)
    run("SOLVER.AMP.ENABLED", "True")
    assert set(seen) == {(True, torch.bfloat16, torch.float32), (False, torch.float32, torch.float32)}
    metrics = read_metrics(tmp_path / "run")
    assert all(torch.tensor(row["total_loss"]).isfinite() for row in metrics if "total_loss" in row)
    weights = torch.load(tmp_path / "run/model_final.pth")["model"]
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("mixed", ["False", "True"])
def test_a_run_in_parts_goes_on_after_its_checkpoint(run, tmp_path, mixed):
    options = ["SOLVER.ACCUMULATE_STEPS", "2", "SOLVER.AMP.ENABLED", mixed]
    run("SOLVER.MAX_ITER", "2", *options)
    run("--resume", "SOLVER.MAX_ITER", "4", *options)
    assert torch.load(tmp_path / "run/model_final.pth")["iteration"] == 3
    assert {"total_loss", "ground_truths_without_proposal"} <= set().union(*read_metrics(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"SOLVER\.ACCUMULATE_STEPS is 3, but the batch of a process has 2 images"):
        run("SOLVER.ACCUMULATE_STEPS", "3")


def test_the_schedule_follows_the_batch_and_the_saved_config_is_not_scaled_again(run, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run("SOLVER.REFERENCE_BATCH_SIZE", "4", "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.002")
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["SOLVER"]
    assert config["BASE_LR"] == pytest.approx(0.001)
    assert config["MAX_ITER"] == 4
    assert config["REFERENCE_BATCH_SIZE"] == config["IMS_PER_BATCH"] == 2


def test_a_set_with_too_many_boxes_an_image_is_told_at_the_start(run, tmp_path):
    run("MODEL.SparseRCNN.NUM_PROPOSALS", "1", "SOLVER.MAX_ITER", "1")
    log = (tmp_path / "run/log.txt").read_text()
    assert re.search(r"6 images, \d+ boxes, 5 classes", log)
    assert re.search(r"WARNING: .*NUM_PROPOSALS", log)


DYNAMIC = ["MODEL.META_ARCHITECTURE", "DynamicSparseRCNN", "MODEL.SparseRCNN.DPG.HIDDEN_DIM", "16"]


def test_the_temperature_goes_on_after_a_resume_where_it_was(run, tmp_path):
    dynamic = [*DYNAMIC, "MODEL.SparseRCNN.DPG.TEMPERATURE_ITERS", "4"]

    def last_temperature() -> float:
        return [row for row in read_metrics(tmp_path / "run") if "dpg/temperature" in row][-1]["dpg/temperature"]

    run(*dynamic, "SOLVER.MAX_ITER", "2")
    assert last_temperature() == pytest.approx(30 - 29 / 4)  # of iteration 1
    run("--resume", *dynamic, "SOLVER.MAX_ITER", "4")
    assert last_temperature() == pytest.approx(30 - 3 * 29 / 4)
    run("--resume", *dynamic, "SOLVER.MAX_ITER", "6")
    assert last_temperature() == 1.0


def test_a_dynamic_checkpoint_gives_the_training_runs_own_detections_and_diagnostics(run, tmp_path):
    run(*DYNAMIC)
    detections = tmp_path / "run/inference/coco_instances_results.json"
    trained = json.loads(detections.read_text())
    detections.unlink()
    results = run("--eval-only", *DYNAMIC, "MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"), "SEED", "7")
    evaluated = json.loads(detections.read_text())
    assert len(trained) > 20
    assert [x["score"] for x in evaluated] == pytest.approx([x["score"] for x in trained], abs=1e-5)
    logged = read_metrics(tmp_path / "run")[-1]
    for name in ("recall50", "weight_entropy", "weight_variance"):
        assert logged[f"proposals/{name}"] == pytest.approx(results["proposals"][name], abs=1e-5)
    assert list(results) == ["proposals", "bbox"]


def test_mixed_precision_trains_dynamic_proposals(run, tmp_path):
    run(*DYNAMIC, "SOLVER.AMP.ENABLED", "True")
    losses = [row["total_loss"] for row in read_metrics(tmp_path / "run") if "total_loss" in row]
    assert losses and torch.tensor(losses).isfinite().all()
