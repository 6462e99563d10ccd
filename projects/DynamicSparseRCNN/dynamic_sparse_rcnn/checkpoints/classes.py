"""The classes of a detector: their names, and what a checkpoint says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

from detectron2.data import MetadataCatalog

from ..data.datasets import class_difference, register_dataset
from ..data.formats import Classes
from .files import Checkpoint

# Last parts of the names of the classification layer's bias, ours and mmdetection's.
_CLASS_BIAS = ("class_logits.bias", ".fc_cls.bias")
_MOST_NAMES = 20


@dataclass(frozen=True)
class DetectorClasses(Classes):
    """The classes of a detector, in the order of its outputs."""

    @classmethod
    def from_datasets(cls, datasets: Sequence[str]) -> DetectorClasses | None:
        """Of the first data set that is there and has class names; None if there is none."""
        for name in datasets:
            try:
                register_dataset(name)
            except (OSError, ValueError):
                continue  # detectors outlive the data that they were trained on
            metadata = MetadataCatalog.get(name)
            names = metadata.get("thing_classes")
            if names:
                by_id = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(names))}
                return cls(tuple(names), tuple(sorted(by_id, key=by_id.__getitem__)))
        return None

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> DetectorClasses | None:
        """Of a checkpoint that says; None if it does not."""
        names, ids = checkpoint.get("class_names"), checkpoint.get("category_ids")
        return cls(tuple(names), tuple(ids)) if names and ids else None

    def to_checkpoint(self) -> Checkpoint:
        """What :meth:`from_checkpoint` finds."""
        return {"class_names": list(self.names), "category_ids": list(self.category_ids)}

    def difference(self, names: Sequence[str]) -> str:
        """In what a checkpoint of these classes differs from other class names; empty where it does not."""
        if tuple(names) == self.names:
            return ""
        return (
            f"the checkpoint's classes are {list(self.names[:_MOST_NAMES])}, but {list(names[:_MOST_NAMES])} are "
            f"wanted: {class_difference(self.names, names)}"
        )

    def require(self, data: DetectorClasses | None, checkpoint: str) -> None:
        """Makes sure that a checkpoint of these classes can be evaluated on data, if their classes are known.

        Raises:
            ValueError: the data have other classes, or in another order.
        """
        if data is not None and (difference := self.difference(data.names)):
            raise ValueError(
                f"{checkpoint} was trained on other classes than the data have: {difference}. Take data whose classes "
                "have the same names in the same order (in a COCO file, the order of the category ids)."
            )


def number_of_classes(state_dict: Mapping[str, Sized]) -> int:
    """The number of classes of a Sparse R-CNN, from its weights in our names or in mmdetection's.

    Raises:
        ValueError: they are of something else.
    """
    for name, value in state_dict.items():
        if name.endswith(_CLASS_BIAS):
            return len(value)
    raise ValueError("The checkpoint holds no Sparse R-CNN: it has no class_logits. Name that of a whole detector")
