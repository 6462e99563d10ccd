"""Images with their right, false and missed boxes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamic_sparse_rcnn.report.detections import Box, ImageErrors
from dynamic_sparse_rcnn.report.images import draw_errors


@pytest.mark.parametrize("side", [512, 1280])
def test_each_kind_of_box_has_its_color_in_an_image_of_readable_size(tmp_path: Path, side: int) -> None:
    Image.new("RGB", (side, side), "gray").save(tmp_path / "gray.png")
    tenth = side / 10
    right, false, missed = (Box((x * tenth, tenth, (x + 2) * tenth, 8 * tenth), 0, 0.5) for x in (1, 4, 7))
    image = draw_errors(ImageErrors("gray.png", (right,), (false,), (missed,)), ["cat"], str(tmp_path))
    kind, _, data = image.uri.partition(",")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert kind == "data:image/jpeg;base64"
    assert pixels.shape == (min(side, 640), min(side, 640), 3)
    bottom = pixels[round(0.8 * len(pixels)) - 3 : round(0.8 * len(pixels)) + 3].astype(int)
    for x, color in ((0.2, (100, 143, 255)), (0.5, (220, 38, 127)), (0.8, (255, 176, 0))):
        distance = np.abs(bottom[:, round(x * len(pixels))] - color).sum(-1).min()
        assert distance < 100, f"nothing of {color}"
    assert image.caption == "gray.png: 1 right, 1 false, 1 missed"
    assert image.alt == "gray.png: 1 right, 1 false, 1 missed; false cat: 1; missed cat: 1"


def test_many_boxes_have_no_labels_that_hide_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (600, 600), "gray").save(tmp_path / "gray.png")
    boxes = tuple(Box((x, 10, x + 200, 300), 0, 0.5) for x in range(0, 390, 15))

    def black_pixels(missed: tuple[Box, ...]) -> int:
        image = draw_errors(ImageErrors("gray.png", (), (), missed), ["cat"], str(tmp_path))
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.uri.partition(",")[2]))))
        return int((pixels.max(-1) < 60).sum())

    assert len(boxes) > 20
    assert black_pixels(boxes[:3]) > 500 > black_pixels(boxes) == 0
