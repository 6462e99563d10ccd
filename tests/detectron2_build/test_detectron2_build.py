"""What the patches of detectron2 0.6 are for, shown on the detectron2 that is installed."""

import json
import re
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2 import model_zoo
from detectron2.data import DatasetCatalog
from detectron2.data.build import print_instances_class_histogram
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import nms_rotated
from detectron2.structures import Boxes, Instances, RotatedBoxes, pairwise_iou_rotated
from detectron2.utils.collect_env import collect_env_info

from dynamic_sparse_rcnn.detectron2_build.install import installed_version
from dynamic_sparse_rcnn.detectron2_build.patches import PATCHES, Patch
from dynamic_sparse_rcnn.detectron2_build.wheel import VERSION

pytestmark = pytest.mark.skipif(
    installed_version() != VERSION, reason="the detectron2 here is not the build of dsrcnn install-detectron2"
)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: f"{patch.file}: {patch.old[:30]!r}")
def test_every_patch_is_in_the_installed_detectron2(patch: Patch) -> None:
    text = (Path(detectron2.__file__).parent / patch.file).read_text()
    assert patch.old not in text
    assert patch.new in text
    assert "PATCHES.txt" in text.splitlines()[-1]


def test_compiled_operators_raise_a_clear_error_when_used() -> None:
    boxes = RotatedBoxes(torch.ones(2, 5))
    with pytest.raises(NotImplementedError, match="box_iou_rotated is a compiled operator"):
        pairwise_iou_rotated(boxes, boxes)
    with pytest.raises(NotImplementedError, match="nms_rotated is a compiled operator"):
        nms_rotated(boxes.tensor, torch.ones(2), 0.5)


def test_environment_report_says_that_nothing_is_compiled() -> None:
    assert "none (pure-Python build)" in collect_env_info()


def test_model_zoo_finds_its_configs() -> None:
    assert model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml").MODEL.META_ARCHITECTURE == "RetinaNet"
    with pytest.raises(RuntimeError, match="not available"):
        model_zoo.get_config_file("absent.yaml")


def test_coco_evaluation_works_with_its_default_arguments(tmp_path: Path) -> None:
    """One image, two objects; both are found exactly, but one below a wrong detection of the same class."""
    boxes = [[10, 10, 20, 20], [50, 50, 30, 30]]
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}]
    categories = [{"id": 1, "name": "thing"}]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))
    name = f"two things of {tmp_path}"
    register_coco_instances(name, {}, str(path), str(tmp_path))
    DatasetCatalog.get(name)  # only this fills in the class ids
    detections = Instances((100, 100))
    detections.pred_boxes = Boxes(torch.tensor([[10.0, 10, 30, 30], [0, 80, 9, 99], [50, 50, 80, 80]]))
    detections.scores = torch.tensor([0.9, 0.8, 0.7])
    detections.pred_classes = torch.tensor([0, 0, 0])
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": detections}])
    result = evaluator.evaluate()["bbox"]
    # precision 1 up to recall 0.5 (51 of the 101 recall levels), 2/3 after it
    expected = 100 * (51 * 1 + 50 * 2 / 3) / 101
    assert result["AP"] == pytest.approx(expected)
    assert result["AP50"] == pytest.approx(expected)


def test_class_histogram_of_a_data_set_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    entries = [{"annotations": [{"category_id": 1}, {"category_id": 1}, {"category_id": 0, "iscrowd": 1}]}]
    with caplog.at_level("INFO"):
        print_instances_class_histogram(entries, ["a", "b"])
    assert re.search(r"\|\s*a\s*\|\s*0\s*\|\s*b\s*\|\s*2\s*\|", caplog.text)
