"""One checkpoint gives the same detections whichever way it is used."""

from __future__ import annotations

import json
import multiprocessing

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor
from train_net import argument_parser

from dynamic_sparse_rcnn import Predictor, model_zoo, write_checkpoint
from dynamic_sparse_rcnn.checkpoints.loading import load_for_evaluation
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine import main as engine_main

NAME = "dynamic_sparse_rcnn_R_50_FPN_300pro_3x"
PROPOSALS = 12


def detections(found: Instances) -> tuple[Tensor, Tensor, Tensor]:
    return found.pred_boxes.tensor, found.scores, found.pred_classes


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> dict:
    """A data set of two images, one checkpoint, and the same detector as a yaml and as a lazy config."""
    folder = tmp_path_factory.mktemp("same")
    paths = generate_shapes(folder / "shapes", "val", ShapesConfig(num_images=2, image_size=96))
    data = f"coco:{paths.json_path}:{paths.image_folder}"
    cfg = model_zoo.get_config(f"coco/{NAME}.yaml")
    node = cfg.MODEL.SparseRCNN
    node.NUM_PROPOSALS, node.NUM_HEADS, node.NUM_CLASSES, node.DIM_FEEDFORWARD = PROPOSALS, 2, 5, 64
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", str(folder / "model.pth")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (data,), (data,)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 128, 160
    cfg.DATALOADER.NUM_WORKERS, cfg.OUTPUT_DIR = 0, str(folder / "run")
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    write_checkpoint(folder / "model.pth", {"model": build_model(cfg).state_dict()})
    overrides = {
        "model.proposal_generator.num_proposals": PROPOSALS,
        "model.head.stages.num_stages": 2,
        "model.head.stages.num_classes": 5,
        "model.head.stages.feedforward_channels": 64,
        "dataloader.test.dataset.name": f"'{data}'",
        "dataloader.test.mapper.augmentations.0.short_edge_length": 128,
        "dataloader.test.mapper.augmentations.0.max_size": 160,
        "train.init_checkpoint": str(folder / "model.pth"),
        "train.device": "cpu",
    }
    lazy = LazyConfig.load(model_zoo.get_config_file(f"lazy/{NAME}.py"))
    lazy = LazyConfig.apply_overrides(lazy, [f"{key}={value}" for key, value in overrides.items()])
    return {"folder": folder, "cfg": cfg, "lazy": lazy, "images": sorted(map(str, paths.image_folder.iterdir()))}


@pytest.fixture(scope="module")
def expected(setting) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What the model of the yaml gives for inputs that are made here, by hand."""
    model = build_model(setting["cfg"]).eval()
    load_for_evaluation(model, setting["cfg"].MODEL.WEIGHTS)
    found = []
    for file in setting["images"]:
        image = read_image(file, "RGB")
        resized = np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BILINEAR))
        inputs = {"image": torch.as_tensor(resized.copy()).permute(2, 0, 1), "height": 96, "width": 96}
        with torch.no_grad():
            found.append(detections(model([inputs])[0]["instances"]))
    assert len(found[0][0]) > 10 and (found[0][0][0] - found[1][0][0]).abs().max() > 0.01
    return found


def assert_same(found: list[tuple[Tensor, Tensor, Tensor]], expected: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    for (boxes, scores, classes), (true_boxes, true_scores, true_classes) in zip(found, expected, strict=True):
        assert torch.equal(classes, true_classes)
        assert (boxes - true_boxes).abs().max() < 1e-3
        assert (scores - true_scores).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("route", ["cfg", "lazy", "file"])
def test_predictor(setting, expected, route):
    config = setting.get(route, str(setting["folder"] / "config.yaml"))
    predictor = Predictor(config, device="cpu", score_threshold=0)
    assert predictor.classes.names == ("circle", "square", "triangle", "star", "ring")
    assert_same([detections(predictor(file).instances) for file in setting["images"]], expected)


@pytest.mark.slow
def test_evaluation_from_the_command_line(setting, expected):
    arguments = ["--config-file", str(setting["folder"] / "config.yaml"), "--eval-only"]
    engine_main.main(argument_parser().parse_args(arguments))
    results = json.loads((setting["folder"] / "run/inference/coco_instances_results.json").read_text())
    found = []
    for image_id in sorted({entry["image_id"] for entry in results}):
        entries = [entry for entry in results if entry["image_id"] == image_id]
        boxes = torch.tensor([entry["bbox"] for entry in entries])
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([entry["score"] for entry in entries])
        found.append((boxes, scores, torch.tensor([entry["category_id"] - 1 for entry in entries])))
    assert_same(found, expected)


@pytest.mark.slow
def test_test_time_augmentation_is_evaluated_beside(setting):
    arguments = ["--config-file", str(setting["folder"] / "config.yaml"), "--eval-only"]
    options = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(96,)", "TEST.AUG.MAX_SIZE", "128"]
    results = engine_main.main(argument_parser().parse_args([*arguments, *options]))
    assert {"bbox", "bbox_TTA"} <= results.keys()
    assert results["bbox"].keys() == results["bbox_TTA"].keys()
    plain, augmented = (
        (setting["folder"] / f"run/{name}/coco_instances_results.json").read_text()
        for name in ("inference", "inference_TTA")
    )
    assert plain != augmented


def _serve(cfg, tasks, results) -> None:
    predictor = DefaultPredictor(cfg)
    while (image := tasks.get()) is not None:
        results.put(predictor(image))


@pytest.mark.slow
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="detectron2's AsyncPredictor forks")
def test_a_worker_process_like_those_of_detectron2s_async_predictor(setting, expected):
    context = multiprocessing.get_context("fork")
    tasks, results = context.Queue(), context.Queue()
    worker = context.Process(target=_serve, args=(setting["cfg"], tasks, results), daemon=True)
    worker.start()
    found = []
    for file in setting["images"]:
        tasks.put(cv2.imread(file))
        # A copy: what the worker shares ends with it.
        found.append(tuple(x.clone() for x in detections(results.get(timeout=120)["instances"])))
    tasks.put(None)
    worker.join()
    assert_same(found, expected)
