"""The report on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from ..records import BoxProblem, BoxTable

_CLASSES_IN_TABLE = 80
_CLASSES_PER_ROW = 4
_FIRST_FILES = 5
# How far a box may reach beyond its image without a warning, in pixels: annotation tools round.
_BEYOND = 1.0
# Shares of all boxes above which a mistake in the whole file is more likely than mistakes in single boxes.
_MANY_BEYOND, _MANY_DEGENERATE = 0.2, 0.5


@dataclass(frozen=True)
class BoxFinding:
    """Boxes with something in common: their number, their share of all boxes, and the first images with one."""

    count: int
    share: float
    first_files: tuple[str, ...]

    @classmethod
    def of(cls, found: npt.NDArray[np.bool_], table: BoxTable, files: Sequence[str]) -> BoxFinding:
        """The boxes of a table that ``found``, (N,) bool, selects."""
        images = np.unique(table.image[found])[:_FIRST_FILES]
        return cls(int(found.sum()), float(found.sum() / max(1, len(found))), tuple(files[i] for i in images))

    def __str__(self) -> str:
        return f"({self.share:.1%}), first in {', '.join(self.first_files)}"


@dataclass(frozen=True)
class DatasetReport:
    """What a data set contains after unusable boxes were dropped.

    Attributes:
        name: the data set's.
        images: number of images.
        boxes: number of boxes to detect, without crowds.
        crowd_boxes: number of boxes around crowds, which count as objects neither in training nor in evaluation.
        images_without_boxes: number of images without a box to detect.
        most_boxes_in_an_image: the largest number of boxes to detect in one image.
        fullest_image: file name of the first image with that many.
        class_counts: number of boxes to detect, by class name.
        dropped: unusable boxes, by what is wrong with them.
        beyond: boxes that reach more than a pixel beyond their image; only the part in the image is learned.
    """

    name: str
    images: int
    boxes: int
    crowd_boxes: int
    images_without_boxes: int
    most_boxes_in_an_image: int
    fullest_image: str
    class_counts: dict[str, int]
    dropped: dict[BoxProblem, BoxFinding]
    beyond: BoxFinding

    @classmethod
    def of(
        cls,
        table: BoxTable,
        problems: npt.NDArray[np.int64],
        name: str,
        files: Sequence[str],
        class_names: Sequence[str],
    ) -> DatasetReport:
        """Makes the report.

        Args:
            table: the data set's boxes.
            problems: (N,) int64, values of ``BoxProblem``.
            name: the data set's.
            files: those of its images.
            class_names: one for each class.
        """
        usable = problems == BoxProblem.NONE
        counted = usable & ~table.crowd
        per_image = np.bincount(table.image[counted], minlength=len(files))
        fullest = int(per_image.argmax()) if files else -1
        counts = np.bincount(table.classes[counted], minlength=len(class_names)).tolist()
        too_far = np.maximum(-table.boxes[:, :2], table.boxes[:, 2:] - table.image_sizes).max(axis=1) > _BEYOND
        kinds = [BoxProblem.NON_FINITE, BoxProblem.DEGENERATE, BoxProblem.OUTSIDE]
        return cls(
            name=name,
            images=len(files),
            boxes=int(counted.sum()),
            crowd_boxes=int((usable & table.crowd).sum()),
            images_without_boxes=int((per_image == 0).sum()),
            most_boxes_in_an_image=int(per_image[fullest]) if files else 0,
            fullest_image=files[fullest] if files else "",
            class_counts=dict(zip(class_names, counts, strict=True)),
            dropped={kind: BoxFinding.of(problems == kind, table, files) for kind in kinds},
            beyond=BoxFinding.of(usable & too_far, table, files),
        )

    def summary(self, num_proposals: int) -> str:
        """The counts, as a few lines.

        Args:
            num_proposals: proposals per image, which limit the number of objects found in it.
        """
        lines = [
            f"Data set {self.name}",
            f"  {self.images} images, {self.boxes} boxes, {len(self.class_counts)} classes",
            f"  {self.images_without_boxes} images without boxes, {self.crowd_boxes} crowd boxes",
            f"  at most {self.most_boxes_in_an_image} boxes in an image (NUM_PROPOSALS {num_proposals})",
            *_class_table(self.class_counts),
        ]
        return "\n".join(lines)

    def warnings(self, num_proposals: int) -> list[str]:
        """What to know before training on the data set or trusting an evaluation; empty if all is well."""
        warnings = [
            f"boxes dropped: {found.count} {_PROBLEMS[kind]} {found}"
            for kind, found in self.dropped.items()
            if found.count
        ]
        if self.dropped[BoxProblem.DEGENERATE].share > _MANY_DEGENERATE:
            warnings.append("most boxes are a pixel or less: are their coordinates fractions of the image (0 to 1)?")
        if self.beyond.count:
            warnings.append(f"{self.beyond.count} boxes reach beyond their image and are clipped to it {self.beyond}")
        if self.beyond.share > _MANY_BEYOND:
            warnings.append(
                "many boxes reach beyond their image: is a second corner in the place of their size, or their center "
                "in that of a corner?"
            )
        if self.crowd_boxes and not self.boxes:
            warnings.append(f"all {self.crowd_boxes} boxes are crowds ('iscrowd' 1), which do not count as objects")
        if self.most_boxes_in_an_image > num_proposals:
            warnings.append(
                f"{self.fullest_image} has {self.most_boxes_in_an_image} boxes, more than the "
                f"{num_proposals} proposals: no image can have more than {num_proposals} objects learned and "
                f"found. Set MODEL.SparseRCNN.NUM_PROPOSALS to {self.most_boxes_in_an_image} or more"
            )
        empty = [name for name, count in self.class_counts.items() if not count]
        if empty:
            more = ", ..." if len(empty) > 10 else ""
            warnings.append(f"{len(empty)} classes have no box: {', '.join(empty[:10])}{more}")
        return warnings


_PROBLEMS = {
    BoxProblem.NON_FINITE: "with NaN or infinite numbers",
    BoxProblem.DEGENERATE: "degenerate, no area or a single point,",
    BoxProblem.OUTSIDE: "entirely outside of their image",
}


def _class_table(counts: dict[str, int]) -> list[str]:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown, hidden = ranked[:_CLASSES_IN_TABLE], ranked[_CLASSES_IN_TABLE:]
    columns = min(_CLASSES_PER_ROW, len(shown))
    rows = [list(chain(*shown[i : i + columns])) for i in range(0, len(shown), columns)]
    table = tabulate(rows, headers=["class", "boxes"] * columns)
    lines = [f"  {line}" for line in table.splitlines()]
    if hidden:
        lines.append(f"  and {len(hidden)} classes with {hidden[0][1]} boxes or fewer")
    return lines
