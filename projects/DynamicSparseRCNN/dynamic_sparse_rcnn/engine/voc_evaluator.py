"""Pascal VOC's metric for data sets of any format."""

from __future__ import annotations

import logging
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.structures import Instances
from detectron2.utils import comm

from ..data.datasets import register_dataset
from ..data.formats.voc import load_voc
from ..data.records import BoxProblem, BoxTable, Record

logger = logging.getLogger(__name__)


class VOCEvaluator(DatasetEvaluator):
    """detectron2's ``PascalVOCDetectionEvaluator`` for data sets of any format, class names and annotations.

    The ground truth is written anew as that evaluator needs it: whole pixels, all of VOC's elements, names without
    spaces. Objects that are ``difficult``, or crowds, count neither way. Classes without objects are left out of
    the mean. Results are ``AP`` (over IoU 0.50 to 0.95), ``AP50``, which is VOC's own, and ``AP75``, in percent, of
    the task ``voc2007`` or ``voc2012``.
    """

    def __init__(self, dataset_name: str, year: int) -> None:
        """
        Args:
            dataset_name: a registered data set, the same in all processes.
            year: 2007 for the metric at 11 recalls, 2012 for the area under the curve.
        """
        self.task = f"voc{year}"
        dicts = _ground_truth(dataset_name)
        counted = [_counted(record) for record in dicts]
        present = np.unique([o["category_id"] for objects in counted for o in objects if not _ignored(o)])
        #: Position of each class among those with objects.
        self._positions = {int(category): position for position, category in enumerate(present)}
        self._numbers = {record["image_id"]: str(number) for number, record in enumerate(dicts)}
        self._folder = tempfile.TemporaryDirectory(prefix="voc_ground_truth_")
        if comm.is_main_process():
            _write_ground_truth(Path(self._folder.name), counted, self._positions, dataset_name)
        self._evaluator = _evaluator_of(self._folder.name, len(self._positions), year)

    def reset(self) -> None:
        """Forgets all detections."""
        self._evaluator.reset()

    def process(self, inputs: Sequence[Record], outputs: Sequence[dict[str, Instances]]) -> None:
        """Takes the detections of some images, in pixels of the original images."""
        for one, output in zip(inputs, outputs, strict=True):
            instances = self._of_present_classes(output["instances"].to("cpu"))
            self._evaluator.process([{"image_id": self._numbers[one["image_id"]]}], [{"instances": instances}])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metrics of all processes' detections, in the main process; None in the others."""
        if not self._positions:
            logger.warning("The test set has no objects but difficult ones: VOC's metric is undefined (NaN).")
            return {self.task: dict.fromkeys(("AP", "AP50", "AP75"), float("nan"))}
        results = self._evaluator.evaluate()
        parse_rec.cache_clear()  # it would keep every file of every evaluation
        return {self.task: results["bbox"]} if results else None

    def _of_present_classes(self, instances: Instances) -> Instances:
        known = torch.tensor([c in self._positions for c in instances.pred_classes.tolist()], dtype=torch.bool)
        instances = instances[known]
        positions = [self._positions[c] for c in instances.pred_classes.tolist()]
        instances.pred_classes = torch.tensor(positions, dtype=torch.int64)
        return instances


def _ground_truth(dataset_name: str) -> list[Record]:
    register_dataset(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") == "pascal_voc":
        # Of detectron2's own: its loader drops what is difficult or not.
        return load_voc(metadata.dirname, metadata.split, metadata.thing_classes)
    dicts: list[Record] = DatasetCatalog.get(dataset_name)
    return dicts


def _counted(record: Record) -> list[Record]:
    """The objects of an image that some detection could match, as COCO's evaluation has them; boxes in xyxy."""
    table = BoxTable.from_records([record])
    usable = table.find_problems(max_point_side=0.0) == BoxProblem.NONE
    boxes = zip(record.get("annotations", ()), table.boxes.tolist(), usable, strict=True)
    return [{**o, "bbox": box} for o, box, counts in boxes if counts]


def _ignored(obj: Record) -> bool:
    return bool(obj.get("difficult", 0) or obj.get("iscrowd", 0))


def _write_ground_truth(
    folder: Path, images: Sequence[list[Record]], positions: dict[int, int], dataset_name: str
) -> None:
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "all.txt").write_text("\n".join(map(str, range(len(images)))))
    fractional = 0
    for number, objects in enumerate(images):
        root = ElementTree.Element("annotation")
        for obj in objects:
            # Of other classes all objects are ignored, and no detection is kept.
            if obj["category_id"] in positions:
                root.append(_voc_object(obj, positions[obj["category_id"]]))
                fractional += any(value % 1 for value in obj["bbox"])
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{number}.xml")
    if fractional:
        logger.warning(
            "%s: %d boxes are rounded to whole pixels, as VOC's metric needs them.",
            dataset_name,
            fractional,
        )


def _voc_object(obj: Record, position: int) -> ElementTree.Element:
    element = ElementTree.Element("object")
    values = {"name": position, "pose": "Unspecified", "truncated": 0, "difficult": int(_ignored(obj))}
    for tag, value in values.items():
        ElementTree.SubElement(element, tag).text = str(value)
    box = ElementTree.SubElement(element, "bndbox")
    xmin, ymin, xmax, ymax = obj["bbox"]
    for tag, corner in (("xmin", xmin + 1), ("ymin", ymin + 1), ("xmax", xmax), ("ymax", ymax)):
        ElementTree.SubElement(box, tag).text = str(round(corner))
    return element


def _evaluator_of(folder: str, num_classes: int, year: int) -> PascalVOCDetectionEvaluator:
    name = f"written to {folder}"
    MetadataCatalog.get(name).set(
        dirname=folder, split="all", year=year, thing_classes=[str(i) for i in range(num_classes)]
    )
    try:
        return PascalVOCDetectionEvaluator(name)
    finally:
        MetadataCatalog.remove(name)
