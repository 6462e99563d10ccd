"""VOC's metric beside COCO's, for both formats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import register_pascal_voc
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances
from written_datasets import CONTENT, Box, coco_content, detect, evaluate, registered, write_coco, write_voc

from dynamic_sparse_rcnn.engine.evaluation import build_evaluator, inference_folder, voc_year, with_diagnostics
from dynamic_sparse_rcnn.engine.voc_evaluator import VOCEvaluator

BCCD = Path(os.environ.get("BCCD_FOLDER", "-"))
needs_bccd = pytest.mark.skipif(not BCCD.is_dir(), reason="BCCD_FOLDER does not name the folder of the BCCD data set")
PLAIN = {stem: [box for box in boxes if not box.difficult] for stem, boxes in CONTENT.items()}


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    write_voc(tmp_path / "voc", CONTENT)
    return tmp_path / "voc"


def complete_for_detectron2(folder: Path) -> None:
    """Gives every object the elements that detectron2's evaluator demands."""
    for path in (folder / "Annotations").iterdir():
        text = path.read_text()
        path.write_text(text.replace("<difficult>", "<pose>Left</pose><truncated>0</truncated><difficult>"))


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(3))
def test_the_metric_is_detectron2s_own_where_that_can_read_the_files(voc_folder: Path, year: int, seed: int) -> None:
    complete_for_detectron2(voc_folder)
    name = registered(f"voc:{voc_folder}:train")
    own = f"{name} {year} {seed}"
    MetadataCatalog.get(own).set(
        dirname=str(voc_folder), split="train", year=year, thing_classes=MetadataCatalog.get(name).thing_classes
    )
    pairs = detect(name, seed)
    with np.errstate(invalid="ignore"):  # the only bee that is not difficult is a point, but an object there
        expected = evaluate(PascalVOCDetectionEvaluator(own), pairs)["bbox"]
    assert evaluate(VOCEvaluator(name, year), pairs) == {f"voc{year}": pytest.approx(expected)}


@pytest.mark.parametrize("year", [2007, 2012])
def test_both_formats_have_the_same_metrics(tmp_path: Path, year: int) -> None:
    write_voc(tmp_path / "voc", PLAIN)
    names = [f"voc:{tmp_path / 'voc'}:train", write_coco(tmp_path / "coco", coco_content(PLAIN))]
    results = [evaluate(VOCEvaluator(registered(name), year), detect(name)) for name in names]
    assert results[0] == results[1]
    assert 0 < results[0][f"voc{year}"]["AP"] < 100


def test_perfect_detections_have_all_of_it_and_none_nothing(voc_folder: Path) -> None:
    name = registered(f"voc:{voc_folder}:train")
    pairs = []
    for record in DatasetCatalog.get(name):
        objects = record["annotations"]
        instances = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)),
            scores=torch.ones(len(objects)),
            pred_classes=torch.tensor([o["category_id"] for o in objects], dtype=torch.int64),
        )
        pairs.append((record, {"instances": instances}))
    # "bee" has a difficult object, whose detection must not count, and a point.
    assert evaluate(VOCEvaluator(name, 2012), pairs)["voc2012"]["AP"] == pytest.approx(100)
    nothing = [(record, {"instances": output["instances"][:0]}) for record, output in pairs]
    assert evaluate(VOCEvaluator(name, 2012), nothing)["voc2012"]["AP"] == 0


def test_any_class_names_image_names_and_coordinates_are_evaluated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {"an image": [Box("cell / red", (0, 0, 40, 40)), Box("été", (50, 5, 110, 70))]}
    write_voc(tmp_path, content)
    file = tmp_path / "Annotations" / "an image.xml"
    file.write_text(file.read_text().replace("<xmax>40<", "<xmax>40.4<"))
    name = registered(f"voc:{tmp_path}:train")
    evaluator = VOCEvaluator(name, 2007)
    assert "1 boxes are rounded to whole pixels" in caplog.text
    record = DatasetCatalog.get(name)[0]
    instances = Instances(
        (80, 120),
        pred_boxes=Boxes([o["bbox"] for o in record["annotations"]]),
        scores=torch.tensor([0.9, 0.8]),
        pred_classes=torch.tensor([o["category_id"] for o in record["annotations"]]),
    )
    assert evaluate(evaluator, [(record, {"instances": instances})])["voc2007"]["AP"] == pytest.approx(100)


def test_classes_without_objects_are_not_part_of_the_mean(tmp_path: Path) -> None:
    coco = coco_content(PLAIN)
    coco["categories"].append({"id": 99, "name": "dodo"})
    names = [write_coco(tmp_path / "with", coco), write_coco(tmp_path / "without", coco_content(PLAIN))]
    results = [evaluate(VOCEvaluator(registered(name), 2012), detect(name)) for name in names]
    assert results[0]["voc2012"]["AP50"] > 0
    for result in results:
        assert np.isfinite(list(result["voc2012"].values())).all()
    empty = write_coco(tmp_path / "empty", coco_content({"c": []}))
    assert np.isnan(evaluate(VOCEvaluator(registered(empty), 2012), detect(empty))["voc2012"]["AP50"])


def test_objects_that_no_detection_could_match_do_not_count(tmp_path: Path) -> None:
    coco = coco_content(PLAIN)
    plain = registered(write_coco(tmp_path / "plain", coco))
    coco["annotations"].append(coco["annotations"][0] | {"id": 99, "bbox": [500, 500, 20, 20]})
    more = registered(write_coco(tmp_path / "more", coco))
    pairs = detect(plain)
    assert evaluate(VOCEvaluator(more, 2012), pairs) == evaluate(VOCEvaluator(plain, 2012), pairs)


def test_the_style_is_that_of_the_set_unless_the_config_says_otherwise(voc_folder: Path, tmp_path: Path) -> None:
    coco = registered(write_coco(tmp_path / "coco", coco_content(CONTENT)))
    assert voc_year("auto", f"voc:{voc_folder}:train") == 2012
    assert voc_year("auto", "voc_2007_test") == 2007
    assert voc_year("auto", coco) is None
    assert voc_year("voc2007", coco) == 2007
    assert voc_year("none", "voc_2007_test") is None
    with pytest.raises(ValueError, match=r"TEST\.VOC_METRIC is 'voc2010': use auto, none, voc2007 or voc2012"):
        voc_year("voc2010", coco)


def test_voc_sets_have_both_metrics_and_coco_sets_one(tiny_cfg: Any, voc_folder: Path, tmp_path: Path) -> None:
    name = registered(f"voc:{voc_folder}:train")
    both = build_evaluator(name, str(tmp_path / "output"))
    assert isinstance(both, DatasetEvaluators)
    results = evaluate(both, detect(name))
    assert set(results) == {"bbox", "voc2012"}
    coco = build_evaluator(registered(write_coco(tmp_path / "coco", coco_content(CONTENT))), str(tmp_path))
    assert isinstance(coco, COCOEvaluator)


def test_several_test_sets_keep_their_detections_apart(voc_folder: Path, tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", coco_content(CONTENT))
    names = (registered(f"voc:{voc_folder}:train"), registered(coco))
    for name in names:
        evaluate(build_evaluator(name, inference_folder(str(tmp_path / "output"), name, names)), detect(name))
    files = sorted((tmp_path / "output").glob("**/coco_instances_results.json"))
    ids = [{result["image_id"] for result in json.loads(file.read_text())} for file in files]
    assert len(ids) == 2 and {1, 2} in ids and {"a", "b"} in ids


def test_sets_of_detectron2s_own_layout_are_evaluated_with_their_difficult_objects(tmp_path: Path) -> None:
    content = {"a": [Box("cat", (0, 0, 40, 40)), Box("cat", (50, 5, 110, 70), difficult=1)], "b": []}
    write_voc(tmp_path, content)
    name = f"voc below {tmp_path}"
    register_pascal_voc(name, str(tmp_path), "train", 2007, class_names=["cat"])
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    record = DatasetCatalog.get(name)[0]
    instances = Instances(
        (80, 120),
        pred_boxes=Boxes([[50.0, 5, 110, 70], [0, 0, 40, 40]]),
        scores=torch.tensor([0.9, 0.8]),
        pred_classes=torch.zeros(2, dtype=torch.int64),
    )
    assert evaluate(VOCEvaluator(name, 2007), [(record, {"instances": instances})])["voc2007"]["AP"] == pytest.approx(
        100
    )


@needs_bccd
def test_both_formats_of_real_annotations_have_the_same_metrics() -> None:
    names = [f"voc:{BCCD}:val", f"coco:{BCCD}/annotations_coco/val.json:{BCCD}/JPEGImages"]
    results = [evaluate(VOCEvaluator(registered(name), 2012), detect(name)) for name in names]
    assert results[0] == results[1]
    assert 20 < results[0]["voc2012"]["AP50"] < 95


def test_a_detector_with_precomputed_proposals_has_none_to_evaluate() -> None:
    detector: Any = torch.nn.Module()
    detector.proposal_generator = None  # as detectron2's PrecomputedProposals gives it
    evaluator = DatasetEvaluators([])
    assert with_diagnostics(evaluator, detector) is evaluator
