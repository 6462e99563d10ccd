"""What the pictures of this project have in common: boxes, labels, colours and sizes."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.utils.visualizer import Visualizer
from matplotlib.colors import hsv_to_rgb
from torch import Tensor

Image = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
Colour = tuple[float, float, float]

GREY: Colour = (0.8, 0.8, 0.8)

# Small images are enlarged until their shorter side has this many pixels, for labels to be readable, ...
_READABLE_SIDE = 384
# ... but not beyond this many on the longer one.
_LONGEST_SIDE = 2048
_CAPTION_HEIGHT = 28
_WHITE = 255


def draw_boxes(canvas: Visualizer, boxes: FloatArray, colours: Sequence[Colour], labels: Sequence[str]) -> None:
    """Draws boxes (absolute xyxy pixels of the canvas), and over them the labels that are not empty."""
    for box, colour in zip(boxes, colours, strict=True):
        canvas.draw_box(box, alpha=1.0, edge_color=colour)
    # Labels come last, so that no box hides them, and stay within the image where the box does not.
    lowest = np.array([canvas.output.width - 40, canvas.output.height - 20])
    for box, label in zip(boxes, labels, strict=True):
        if label:
            corner = np.clip(box[:2], 0, lowest)
            canvas.draw_text(label, tuple(corner), color="white", horizontal_alignment="left")


def with_caption(image: Image, caption: str) -> Image:
    """The image below a line of text on white."""
    captioned = cv2.copyMakeBorder(image, _CAPTION_HEIGHT, 0, 0, 0, cv2.BORDER_CONSTANT, value=(_WHITE, _WHITE, _WHITE))
    cv2.putText(captioned, caption, (4, _CAPTION_HEIGHT - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return captioned.astype(np.uint8, copy=False)


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


def distinct_colours(count: int) -> list[Colour]:
    """RGB in [0, 1], of all hues."""
    return [tuple(hsv_to_rgb((index / count, 0.85, 1.0)).tolist()) for index in range(count)]
