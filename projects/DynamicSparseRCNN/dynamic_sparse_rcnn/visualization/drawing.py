"""What all figures of this project draw with: boxes, labels, captions, colors and sizes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageDraw
from torch import Tensor

from .text import drawable_text, load_font

Image = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
Color = tuple[int, int, int]

GRAY: Color = (204, 204, 204)
WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)

# Small images are enlarged until their shorter side has this many pixels, for labels to be readable, ...
_READABLE_SIDE = 384
# ... but not beyond this many on the longer one.
_LONGEST_SIDE = 2048
_CAPTION_HEIGHT = 28
_CAPTION_FONT = 17
_SMALLEST_FONT = 13


def draw_boxes(
    image: Image, boxes: FloatArray, colors: Sequence[Color], labels: Sequence[str] = (), opacity: float = 1.0
) -> Image:
    """Draws boxes, and over them their labels.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        boxes: (N, 4) absolute xyxy pixels.
        colors: one for each box.
        labels: one for each box, of which empty ones are not drawn; or none.
        opacity: of the boxes, in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = PILImage.fromarray(image)
    draw = ImageDraw.Draw(picture, "RGBA")
    size = np.sqrt(picture.width * picture.height)
    line = max(2, round(size / 350))
    half = line // 2
    # Far outside is as good as just outside.
    visible = np.nan_to_num(boxes).reshape(-1, 4).clip(-2 * line, max(picture.size) + 2 * line)
    for (x0, y0, x1, y1), color in zip(np.rint(visible).astype(int).tolist(), colors, strict=True):
        corners = (x0 - half, y0 - half, max(x0, x1 - 1 + half), max(y0, y1 - 1 + half))
        draw.rectangle(corners, outline=(*color, round(255 * opacity)), width=line)
    for box, label in zip(visible, labels, strict=bool(labels)):
        if label:
            _draw_label(draw, box, label, max(_SMALLEST_FONT, round(size / 45)))
    return np.array(picture)


def draw_on(
    image: Image,
    boxes: Tensor,
    colors: Sequence[Color],
    labels: Sequence[str] = (),
    scale: float | None = None,
    opacity: float = 1.0,
) -> Image:
    """:func:`draw_boxes` on the checked image, ``scale`` times as large, with boxes in pixels of the original one."""
    check_image(image)
    scale = scale or readable_scale(image)
    return draw_boxes(resized(image, scale), to_numpy(boxes) * scale, colors, labels, opacity)


def _draw_label(draw: ImageDraw.ImageDraw, box: FloatArray, label: str, size: int) -> None:
    """White on black in the upper left corner of the box, or as near to it as the image allows."""
    width, height = draw.im.size
    font = load_font(label, size)
    text_width = int(font.getlength(label)) + 4
    x = int(np.clip(box[0], 0, max(0, width - text_width)))
    y = int(np.clip(box[1], 0, max(0, height - size - 4)))
    draw.rectangle((x, y, x + text_width, y + size + 3), fill=(*BLACK, 200))
    draw.text((x + 2, y + 1), label, fill=WHITE, font=font)


def with_caption(image: Image, caption: str) -> Image:
    """The (H, W, 3) image below a line of text on white, as (H + 28, W, 3)."""
    captioned = PILImage.new("RGB", (image.shape[1], image.shape[0] + _CAPTION_HEIGHT), WHITE)
    captioned.paste(PILImage.fromarray(image), (0, _CAPTION_HEIGHT))
    text = drawable_text(caption)
    ImageDraw.Draw(captioned).text((4, 4), text, fill=BLACK, font=load_font(text, _CAPTION_FONT))
    return np.array(captioned)


def resized(image: Image, scale: float) -> Image:
    """The image, ``scale`` times as large."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation).astype(np.uint8, copy=False)


def to_numpy(tensor: Tensor) -> FloatArray:
    """Numbers to draw with, from any device."""
    return tensor.detach().cpu().double().numpy()


def readable_scale(image: Image) -> float:
    """By how much an image is enlarged for labels to be readable; large ones, and the long sides of strips, are not."""
    return max(1.0, min(_READABLE_SIDE / min(image.shape[:2]), _LONGEST_SIDE / max(image.shape[:2])))


def distinct_colors(count: int) -> list[Color]:
    """RGB colors of all hues."""
    hues = [colorsys.hsv_to_rgb(index / count, 0.85, 1.0) for index in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]


def check_image(image: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image must be (H,W,3) uint8, got {image.shape} {image.dtype}")
