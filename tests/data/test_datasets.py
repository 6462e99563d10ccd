import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from written_datasets import (
    CONTENT,
    HEIGHT,
    WIDTH,
    coco_content,
    registered,
    table,
    write_coco,
    write_voc,
)

from dynamic_sparse_rcnn.data.datasets import (
    check_same_classes,
    register_dataset,
    resolve_num_classes,
)
from dynamic_sparse_rcnn.data.ground_truth import ensure_coco_json

BCCD = Path(os.environ.get("BCCD_FOLDER", "-"))
needs_bccd = pytest.mark.skipif(not BCCD.is_dir(), reason="BCCD_FOLDER does not name the folder of the BCCD data set")


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "voc"
    write_voc(folder, CONTENT)
    return folder


@pytest.fixture
def coco_name(tmp_path: Path) -> str:
    return write_coco(tmp_path / "coco", coco_content(CONTENT))


def test_coco_and_voc_give_the_boxes_that_were_written(voc_folder: Path, coco_name: str) -> None:
    written = {stem: Counter((box.name, box.corners) for box in boxes) for stem, boxes in CONTENT.items()}
    assert table(registered(f"voc:{voc_folder}:train")) == written
    assert table(registered(coco_name)) == written


@needs_bccd
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_coco_and_voc_forms_of_real_annotations_give_the_same_boxes(split: str) -> None:
    coco = registered(f"coco:{BCCD}/annotations_coco/{split}.json:{BCCD}/JPEGImages")
    voc = registered(f"voc:{BCCD}:{split}")
    assert MetadataCatalog.get(coco).thing_classes == MetadataCatalog.get(voc).thing_classes
    assert table(coco) == table(voc)
    assert sum(len(record["annotations"]) for record in DatasetCatalog.get(voc)) > 900


def test_registering_twice_and_other_names_change_nothing(coco_name: str) -> None:
    register_dataset(coco_name)
    loader = DatasetCatalog[coco_name]
    register_dataset(coco_name)
    assert DatasetCatalog[coco_name] is loader
    before = DatasetCatalog.list()
    register_dataset("coco_2017_train")
    register_dataset("of_somebody:else")
    assert DatasetCatalog.list() == before


def test_paths_that_name_no_data_set_are_told_from_names(tmp_path):
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/train.json"
    file.write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/no: there is no such file or folder"):
        register_dataset(f"{tmp_path}/no")
    with pytest.raises(ValueError, match=f"is a folder: name one of its splits, coco:{file}"):
        register_dataset(str(tmp_path))
    with pytest.raises(ValueError, match=f"is a file: name it with its format, as in coco:{file}"):
        register_dataset(str(file))
    register_dataset("my_registered_set")


def test_sets_with_other_classes_or_another_order_are_refused(voc_folder: Path, coco_name: str) -> None:
    voc_name = f"voc:{voc_folder}:train"
    check_same_classes([voc_name, voc_name])
    assert voc_name in DatasetCatalog.list()
    # The same three names in another order: class 1 is another thing.
    with pytest.raises(ValueError, match="different classes") as error:
        check_same_classes([voc_name, coco_name])
    assert voc_name in str(error.value) and coco_name in str(error.value)


def test_what_long_lists_of_classes_differ_in_is_named(tmp_path: Path) -> None:
    names = []
    for last in ("wasp", "bee"):
        classes = [*(f"class {i}" for i in range(30)), last]
        coco = {"images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}]}
        coco["categories"] = [{"id": i, "name": name} for i, name in enumerate(classes)]
        names.append(write_coco(tmp_path / last, coco))
    with pytest.raises(ValueError, match=r"only the first has \['wasp'\], only the second \['bee'\]"):
        check_same_classes(names)


def test_number_of_classes_is_that_of_the_config_or_of_the_training_set(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": CONTENT["a"]})
    tiny_cfg.DATASETS.TRAIN = (f"voc:{tmp_path}:train",)
    tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = 5
    assert resolve_num_classes(tiny_cfg) == 5
    tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = 0
    assert resolve_num_classes(tiny_cfg) == 2
    tiny_cfg.DATASETS.TRAIN = ("coco_2017_train",)
    assert resolve_num_classes(tiny_cfg) == 80


def test_number_of_classes_that_cannot_be_known_is_an_error(
    tiny_cfg: CfgNode, voc_folder: Path, coco_name: str
) -> None:
    node = tiny_cfg.MODEL.SparseRCNN
    node.NUM_CLASSES = -1
    with pytest.raises(ValueError, match="NUM_CLASSES is -1"):
        resolve_num_classes(tiny_cfg)
    node.NUM_CLASSES = 0
    tiny_cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        resolve_num_classes(tiny_cfg)
    tiny_cfg.DATASETS.TRAIN = ("never_registered",)
    with pytest.raises(ValueError, match="'never_registered' is not registered"):
        resolve_num_classes(tiny_cfg)
    # The same three names in another order: class 1 is another thing.
    tiny_cfg.DATASETS.TRAIN = (coco_name, f"voc:{voc_folder}:train")
    with pytest.raises(ValueError, match="different classes"):
        resolve_num_classes(tiny_cfg)


def evaluate_shifted(name: str, shift: float) -> dict[str, float]:
    """COCO metrics of detections that are the ground truths moved to the right."""
    evaluator = COCOEvaluator(name, ("bbox",), distributed=False, output_dir=None, use_fast_impl=False)
    evaluator.reset()
    classes = MetadataCatalog.get(name).thing_classes
    for record in DatasetCatalog.get(name):
        objects = CONTENT[Path(record["file_name"]).stem]
        corners = torch.tensor([box.corners for box in objects], dtype=torch.float32).reshape(-1, 4)
        instances = Instances(
            (HEIGHT, WIDTH),
            pred_boxes=Boxes(corners + torch.tensor([shift, 0, shift, 0])),
            scores=torch.linspace(0.9, 0.5, len(objects)),
            pred_classes=torch.tensor([classes.index(box.name) for box in objects], dtype=torch.int64),
        )
        evaluator.process([record], [{"instances": instances}])
    metrics: dict[str, float] = evaluator.evaluate()["bbox"]
    return metrics


def test_evaluation_agrees_between_formats_and_counts_every_box_that_can_be_found(
    voc_folder: Path, coco_name: str, tmp_path: Path
) -> None:
    voc_name = f"voc:{voc_folder}:train"
    for name in (voc_name, coco_name):
        ensure_coco_json(name, str(tmp_path / "output"))
        exact = evaluate_shifted(name, 0)
        assert [exact["AP"], exact["AP-bee"]] == pytest.approx([100, 100])
    shifted = evaluate_shifted(voc_name, 9)
    assert shifted == pytest.approx(evaluate_shifted(coco_name, 9), nan_ok=True)
    assert 5 < shifted["AP"] < 95


def evaluation_file(name: str, output_dir: Path) -> Path:
    ensure_coco_json(name, str(output_dir))
    return Path(MetadataCatalog.get(name).json_file)


def test_written_evaluation_file_is_in_the_output_folder_and_as_new_as_the_data(
    voc_folder: Path, tmp_path: Path
) -> None:
    name = f"voc:{voc_folder}:train"
    path = evaluation_file(name, tmp_path / "output")
    assert path.parent == tmp_path / "output"
    assert len(json.loads(path.read_text())["annotations"]) == 5
    write_voc(voc_folder, {**CONTENT, "b": []})
    assert evaluation_file(name, tmp_path / "output") == path
    assert len(json.loads(path.read_text())["annotations"]) == 3
    assert evaluation_file(name, tmp_path / "second").parent == tmp_path / "second"


def test_areas_and_crowds_of_a_coco_file_are_evaluated_as_they_are_written(tmp_path: Path) -> None:
    coco = coco_content({"a": CONTENT["a"]})
    for number, annotation in enumerate(coco["annotations"], start=1):
        annotation |= {"id": number, "area": 50.0 * number, "iscrowd": number % 2}
    name = write_coco(tmp_path, coco)
    written = json.loads(evaluation_file(name, tmp_path / "output").read_text())
    assert written["annotations"] == coco["annotations"]
    coco["annotations"][0]["bbox"] = [500, 0, 20, 20]
    write_coco(tmp_path, coco)
    corrected = json.loads(evaluation_file(name, tmp_path / "output").read_text())["annotations"]
    assert [a["bbox"] for a in corrected] == [a["bbox"] for a in coco["annotations"][1:]]


def test_coco_file_without_annotations_stays_a_test_set(tmp_path: Path) -> None:
    coco = coco_content(CONTENT)
    del coco["annotations"]
    written = json.loads(evaluation_file(write_coco(tmp_path, coco), tmp_path / "output").read_text())
    assert (len(written["images"]), written["annotations"]) == (3, [])
