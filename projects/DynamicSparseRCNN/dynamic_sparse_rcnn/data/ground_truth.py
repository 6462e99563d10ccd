"""The ground truth of any data set as a COCO file, for COCO's evaluation."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..file_io import write_json
from .datasets import register_dataset
from .formats import Classes, parse_dataset_name
from .records import BoxProblem, BoxTable, Record

logger = logging.getLogger(__name__)

# COCO's evaluation ignores larger objects.
_LARGEST_AREA = 1e10
_IMAGE_KEYS = ("file_name", "width", "height")


def coco_content(records: Sequence[Record], classes: Classes) -> Record:
    """Turns records into the content of a COCO annotation file.

    Leaves out boxes that no detection could match: not finite, without area, or outside of the image. Single pixels
    stay, so that results equal those of any COCO evaluation. Annotations without an area get that of their box.
    (detectron2's ``convert_to_coco_dict`` rounds boxes, ignores areas, and keeps unusable boxes.)

    Args:
        records: see ``DatasetFormat.records``.
        classes: the records' classes.
    """
    table = BoxTable.from_records(records)
    sides = table.boxes[:, 2:] - table.boxes[:, :2]
    boxes = np.concatenate([table.boxes[:, :2], sides], axis=1).tolist()
    annotations: list[Record] = []
    flat = [annotation for record in records for annotation in record.get("annotations", ())]
    for i in np.flatnonzero(table.find_problems(max_point_side=0.0) == BoxProblem.NONE):
        as_written = flat[i]["bbox_mode"] == BoxMode.XYWH_ABS
        annotations.append(
            {
                "id": len(annotations) + 1,  # to COCO's evaluation, an id of 0 means "not matched"
                "image_id": records[table.image[i]]["image_id"],
                "category_id": classes.category_ids[table.classes[i]],
                "bbox": list(flat[i]["bbox"]) if as_written else boxes[i],
                "area": min(flat[i].get("area", boxes[i][2] * boxes[i][3]), _LARGEST_AREA),
                "iscrowd": int(table.crowd[i]),
            }
        )
    images = [{"id": record["image_id"]} | {key: record[key] for key in _IMAGE_KEYS} for record in records]
    categories = [{"id": i, "name": name} for i, name in zip(classes.category_ids, classes.names, strict=True)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def ensure_coco_json(name: str, output_dir: str) -> None:
    """Writes the file that ``COCOEvaluator`` evaluates against, and names it as ``json_file`` in the metadata.

    The file goes to ``output_dir`` and holds what the data set holds now. Data sets that were registered otherwise,
    such as ``coco_2017_val``, are left to detectron2, so that results on them stay comparable. All processes must call
    this; the main one writes.

    Raises:
        OSError, ValueError: see ``register_dataset``; or if a ``bbox`` is not four numbers.
    """
    if parse_dataset_name(name) is None:
        return
    register_dataset(name)
    metadata = MetadataCatalog.get(name)
    json_file = os.path.join(output_dir, f"{file_stem(name)}_coco_format.json")
    if comm.is_main_process():
        records = DatasetCatalog.get(name)
        classes = Classes(tuple(metadata.thing_classes), tuple(metadata.thing_dataset_id_to_contiguous_id))
        content = coco_content(records, classes)
        write_json(content, json_file)
        dropped = sum(len(record["annotations"]) for record in records) - len(content["annotations"])
        logger.info("%s is evaluated against %s, without %d unusable boxes.", name, json_file, dropped)
    comm.synchronize()
    vars(metadata).pop("json_file", None)  # a metadata value cannot be changed otherwise
    metadata.json_file = json_file


def file_stem(name: str) -> str:
    """A file name for a data set, unique to its name, which may be long and contain ``/`` and ``:``."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.")[-80:]
    return f"{readable}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
