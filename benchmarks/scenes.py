#!/usr/bin/env python3
"""A set on which proposals that depend on the image must help: the positive control of dynamic proposals.

Each image is one of three kinds of scene, which its background tells, and each kind has its objects at six places of
its own. Six proposals that are the same for every image cannot be near all 18 places; six for each kind can.

    python benchmarks/scenes.py --output output/scenes
    python tools/train_net.py ... DATASETS.TRAIN "('coco:output/scenes/train.json:output/scenes/train',)"
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynamic_sparse_rcnn.file_io import write_image, write_json

KINDS, PLACES, SIDE = 3, 6, 96
CLASS_NAMES = ("red", "blue")
COLORS = np.array([[220, 40, 40], [40, 60, 220]])
# Columns and rows of the cells that the places are: every cell belongs to one kind.
GRID = (6, 3)
# Pixels of a cell that its object leaves free on each side, and by which its edges vary.
MARGIN, JITTER = 2, 1


def places(kind: int) -> npt.NDArray[np.float64]:
    """(6, 4) XYXY pixels of the cells of a kind of scene, 0 to 2; those of the three kinds do not overlap."""
    columns, rows = GRID
    cells = np.random.default_rng(0).permutation(columns * rows)[kind::KINDS]
    size = np.array([SIDE / columns, SIDE / rows])
    left_top = np.stack([cells % columns, cells // columns], axis=1) * size
    return np.concatenate([left_top, left_top + size], axis=1)


def draw_scene(
    kind: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """An image of a kind of scene.

    Returns:
        (96, 96, 3) RGB pixels; (6, 4) boxes, XYXY pixels; (6,) classes, indices of ``CLASS_NAMES``.
    """
    y, x = np.mgrid[:SIDE, :SIDE]
    stripes = np.sin(np.stack([x, y, x + y])[kind] * np.pi / 4)  # upright, level or slanted
    pixels = 128 + 40 * stripes[..., None] + rng.normal(0, 12, (SIDE, SIDE, 3))
    inwards = MARGIN + rng.integers(-JITTER, JITTER + 1, (PLACES, 4))
    boxes = places(kind) + inwards * [1, 1, -1, -1]
    classes = rng.integers(len(CLASS_NAMES), size=PLACES)
    for (x1, y1, x2, y2), color in zip(boxes.astype(int), COLORS[classes], strict=True):
        pixels[y1:y2, x1:x2] = color + rng.normal(0, 12, (y2 - y1, x2 - x1, 3))
    return pixels.clip(0, 255).astype(np.uint8), boxes, classes


def write_scenes(folder: Path, split: str, number: int) -> str:
    """Writes a COCO set of as many images as ``number``, the kinds in turn, and gives its data set name."""
    rng = np.random.default_rng([number, *split.encode()])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, number + 1):
        pixels, boxes, classes = draw_scene(image_id % KINDS, rng)
        file_name = f"{image_id:06d}.png"
        write_image(pixels, folder / split / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": SIDE, "height": SIDE})
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), classes.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1}
            annotations.append(ids | box)
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(content, folder / f"{split}.json")
    return f"coco:{folder / split}.json:{folder / split}"


def main() -> None:
    """Writes the train and the val split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/scenes"))
    parser.add_argument("--images", type=int, nargs=2, default=(300, 60), metavar=("TRAIN", "VAL"))
    args = parser.parse_args()
    for split, number in zip(("train", "val"), args.images, strict=True):
        print(write_scenes(args.output, split, number))


if __name__ == "__main__":
    main()
