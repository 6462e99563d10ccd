"""A generated detection data set in COCO format: colored shapes on textured backgrounds.

It needs no download.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from ..file_io import write_image, write_json
from .records import Record
from .shape_images import SHAPE_CLASSES, ShapesConfig, ShapesImage, draw_image

# Part of what decides whether an existing set is reused: raise it whenever the drawing changes.
DRAWING_VERSION = 1
_DESCRIPTION = "Generated shapes"


@dataclass(frozen=True)
class ShapesPaths:
    """Where a generated set lies: the COCO json, and the folder that its file names are relative to."""

    json_path: Path
    image_folder: Path


def generate_shapes(folder: Path, split: str, config: ShapesConfig) -> ShapesPaths:
    """Writes ``<folder>/<split>/000001.png`` .. and ``<folder>/<split>.json`` (COCO, boxes in pixels, xywh).

    A complete set that was generated with the same configuration is reused, any other generated set of that
    name is replaced. Of several processes that share a folder, only one may call this at a time.

    Raises:
        FileExistsError: the json exists and is not that of a generated set.
        OSError: an image could not be written.
        ValueError: the objects do not fit into an image.
    """
    paths = ShapesPaths(folder / f"{split}.json", folder / split)
    info = {
        "description": _DESCRIPTION,
        "version": str(DRAWING_VERSION),
        "split": split,
        "config": asdict(config),
    }
    if paths.json_path.exists():
        existing = _read_generated(paths.json_path)
        if existing["info"] == info and _images_exist(existing, paths):
            return paths
        _remove(existing, paths)
    paths.image_folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], list[Record]()
    for number in tqdm(range(1, config.num_images + 1), desc=f"drawing {split} images", unit="image"):
        drawn = draw_image(config, split, number)
        images.append(_write_image(drawn, number, paths.image_folder))
        annotations += _annotations(drawn, number, first_id=len(annotations) + 1)
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPE_CLASSES, start=1)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    # Written last: a json without all of its images never exists.
    write_json(content, paths.json_path)
    return paths


def _read_generated(json_path: Path) -> Record:
    try:
        content = json.loads(json_path.read_text())
        if content["info"]["description"] == _DESCRIPTION:
            return content
    except (ValueError, KeyError, TypeError):
        pass
    raise FileExistsError(
        f"{json_path} exists and was not written by generate_shapes: choose another folder, or move it away"
    )


def _images_exist(content: Record, paths: ShapesPaths) -> bool:
    return all((paths.image_folder / image["file_name"]).is_file() for image in content["images"])


def _remove(content: Record, paths: ShapesPaths) -> None:
    paths.json_path.unlink()
    for image in content["images"]:
        (paths.image_folder / image["file_name"]).unlink(missing_ok=True)


def _write_image(drawn: ShapesImage, number: int, image_folder: Path) -> Record:
    """Saves the pixels and returns the image's COCO entry."""
    path = image_folder / f"{number:06d}.png"
    write_image(drawn.pixels, path)
    height, width = drawn.pixels.shape[:2]
    return {"id": number, "file_name": path.name, "width": width, "height": height}


def _annotations(drawn: ShapesImage, number: int, first_id: int) -> list[Record]:
    boxes_xywh = drawn.boxes.copy()
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    return [
        {
            "id": annotation_id,
            "image_id": number,
            "category_id": int(class_index) + 1,
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
        }
        for annotation_id, (box, class_index) in enumerate(zip(boxes_xywh, drawn.classes, strict=True), start=first_id)
    ]
