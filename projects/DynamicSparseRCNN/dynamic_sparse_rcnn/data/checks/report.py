"""What a look at a data set found, and how it is told."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from tabulate import tabulate

_CLASSES_IN_TABLE = 80
_CLASSES_PER_ROW = 4


@dataclass(frozen=True)
class DroppedBoxes:
    """Boxes dropped for one reason: how many, and the first images that had one."""

    count: int
    first_files: tuple[str, ...]


@dataclass(frozen=True)
class DatasetReport:
    """What a data set contains once its unusable boxes are dropped.

    Attributes:
        name: name of the data set.
        images: number of images.
        boxes: number of boxes to be detected, crowd boxes not among them.
        crowd_boxes: number of boxes around crowds, which neither training nor evaluation counts as objects.
        images_without_boxes: number of images that have no box to be detected.
        most_boxes_in_an_image: the largest number of boxes to be detected in one image.
        fullest_image: file name of (the first of) the images with that many.
        class_names: a name for each class.
        class_counts: number of boxes to be detected of each class.
        non_finite: boxes with NaN or infinite numbers.
        degenerate: boxes with a side of zero or less, or of a single point (``find_box_problems``).
        outside: boxes entirely outside of their image.
    """

    name: str
    images: int
    boxes: int
    crowd_boxes: int
    images_without_boxes: int
    most_boxes_in_an_image: int
    fullest_image: str
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    non_finite: DroppedBoxes
    degenerate: DroppedBoxes
    outside: DroppedBoxes

    def summary(self, num_proposals: int) -> str:
        """The report as a few lines, with warnings.

        Args:
            num_proposals: number of proposals an image; an image cannot have more boxes detected than that.
        """
        lines = [
            f"Data set {self.name}",
            f"  {self.images} images, {self.boxes} boxes, {len(self.class_names)} classes",
            f"  {self.images_without_boxes} images without boxes, {self.crowd_boxes} crowd boxes",
            f"  at most {self.most_boxes_in_an_image} boxes in an image (NUM_PROPOSALS {num_proposals})",
            *_class_table(self.class_names, self.class_counts),
            *(f"  WARNING: {warning}" for warning in self.warnings(num_proposals)),
        ]
        return "\n".join(lines)

    def warnings(self, num_proposals: int) -> list[str]:
        """What a user should know before training or trusting an evaluation; empty if all is well."""
        warnings = [
            f"boxes dropped: {dropped.count} {problem}, first in {_list_files(dropped.first_files)}"
            for problem, dropped in (
                ("with NaN or infinite numbers", self.non_finite),
                ("degenerate (no area, or a single point)", self.degenerate),
                ("entirely outside of their image", self.outside),
            )
            if dropped.count
        ]
        if self.most_boxes_in_an_image > num_proposals:
            warnings.append(
                f"{_list_files([self.fullest_image])} has {self.most_boxes_in_an_image} boxes, more than the "
                f"{num_proposals} proposals: no image can have more than {num_proposals} objects learned and "
                f"found. Set MODEL.SparseRCNN.NUM_PROPOSALS to {self.most_boxes_in_an_image} or more"
            )
        empty = [name for name, count in zip(self.class_names, self.class_counts, strict=True) if not count]
        if empty:
            more = ", ..." if len(empty) > 10 else ""
            warnings.append(f"{len(empty)} classes have no box: {', '.join(empty[:10])}{more}")
        return warnings


def _class_table(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    ranked = sorted(zip(names, counts, strict=True), key=lambda item: -item[1])
    shown, hidden = ranked[:_CLASSES_IN_TABLE], ranked[_CLASSES_IN_TABLE:]
    columns = min(_CLASSES_PER_ROW, len(shown))
    rows = [list(chain(*shown[i : i + columns])) for i in range(0, len(shown), columns)]
    table = tabulate(rows, headers=["class", "boxes"] * columns)
    lines = [f"  {line}" for line in table.splitlines()]
    if hidden:
        lines.append(f"  and {len(hidden)} classes with {hidden[0][1]} boxes or fewer")
    return lines


def _list_files(files: Sequence[str]) -> str:
    return ", ".join(os.path.basename(file) for file in files)
