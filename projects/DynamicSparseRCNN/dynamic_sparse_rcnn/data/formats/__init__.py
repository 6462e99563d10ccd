"""Data set formats, one per file. To add one, register a subclass of ``DatasetFormat``."""

from .base import DATASET_FORMAT_REGISTRY, Classes, DatasetFormat, known_forms, parse_dataset_name
from .coco import CocoDataset
from .folders import expand_folders, find_splits
from .voc import VocDataset
from .yolo import YoloDataset

__all__ = [
    "DATASET_FORMAT_REGISTRY",
    "Classes",
    "CocoDataset",
    "DatasetFormat",
    "VocDataset",
    "YoloDataset",
    "expand_folders",
    "find_splits",
    "known_forms",
    "parse_dataset_name",
]
