"""Images with their right, false and missed boxes, as data of a page."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..data.images import read_image
from ..visualization.drawing import draw_boxes, readable_scale, resized
from ..visualization.text import drawable_names
from .detections import ImageErrors
from .page import DrawnImage

# Color-blind people can tell them apart, too.
_RIGHT, _FALSE, _MISSED = (100, 143, 255), (220, 38, 127), (255, 176, 0)
_LONGEST_SIDE = 640
# Of more than these, labels would hide the image.
_MOST_LABELS = 20

LEGEND = "Blue: right detections; magenta: false ones, with their score; amber: missed objects"


def draw_errors(errors: ImageErrors, class_names: Sequence[str], image_root: str) -> DrawnImage:
    """Draws the boxes of an image.

    Args:
        errors: of the image.
        class_names: of all classes.
        image_root: what its file name is relative to, if it is not absolute.

    Raises:
        data.images.IMAGE_ERRORS: the image cannot be read.
    """
    drawn = read_image(os.path.join(image_root, errors.file_name), "RGB")
    scale = min(readable_scale(drawn), _LONGEST_SIDE / max(drawn.shape[:2]))
    drawn = resized(drawn, scale)
    names = drawable_names(class_names)
    labeled = len(errors.missed) + len(errors.false) <= _MOST_LABELS
    for boxes, color, label in (
        (errors.right, _RIGHT, ""),
        (errors.missed, _MISSED, "missed {name}"),
        (errors.false, _FALSE, "{name} {score:.0%}"),
    ):
        corners = np.array([box.xyxy for box in boxes], dtype=np.float64).reshape(-1, 4)
        labels = [label.format(name=names[box.label], score=box.score) for box in boxes]
        drawn = draw_boxes(drawn, corners * scale, [color] * len(boxes), labels if labeled else ())
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=80, subsampling=0)  # thin lines keep their colors
    caption = f"{os.path.basename(errors.file_name)}: {len(errors.right)} right, "
    caption += f"{len(errors.false)} false, {len(errors.missed)} missed"
    kinds = {"false": errors.false, "missed": errors.missed}
    counts = {kind: Counter(class_names[box.label] for box in boxes) for kind, boxes in kinds.items()}
    listed = [f"{kind} {name}: {count}" for kind, own in counts.items() for name, count in own.items()]
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return DrawnImage(uri, "; ".join([caption, *listed]), caption)
