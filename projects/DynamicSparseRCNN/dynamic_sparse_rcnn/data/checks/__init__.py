"""What is in a data set, and what is wrong with it: found, reported, and dropped or refused."""

from .inspection import (
    Inspection,
    inspect_dataset,
    load_checked_dataset,
    report_dataset,
    report_training_sets,
    require_boxes,
    require_usable_images,
)

__all__ = [
    "Inspection",
    "inspect_dataset",
    "load_checked_dataset",
    "report_dataset",
    "report_training_sets",
    "require_boxes",
    "require_usable_images",
]
