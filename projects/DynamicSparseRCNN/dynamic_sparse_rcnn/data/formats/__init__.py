"""Formats of data sets, a file each; register a subclass of ``DatasetFormat`` to add one."""

from .base import DATASET_FORMAT_REGISTRY, Classes, DatasetFormat, known_forms, parse_dataset_name
from .coco import CocoDataset
from .voc import VocDataset
from .yolo import YoloDataset

__all__ = [
    "DATASET_FORMAT_REGISTRY",
    "Classes",
    "CocoDataset",
    "DatasetFormat",
    "VocDataset",
    "YoloDataset",
    "known_forms",
    "parse_dataset_name",
]
