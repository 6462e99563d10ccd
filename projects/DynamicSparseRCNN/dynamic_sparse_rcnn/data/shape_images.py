"""Images of colored shapes on textured backgrounds, with their ground truth.

They are easy for a small detector but not trivial: several classes, rotated and stretched objects, overlaps,
objects cut by the image border, and colors that say nothing about the class.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Smallest part of an object that neither the image border nor later objects may hide.
_MIN_VISIBLE = 0.6
# Smallest distance in CIELAB between an object's color and (95 % of) the pixels it covers or borders on.
_MIN_CONTRAST = 25.0

_SUPERSAMPLING = 4
# Largest IoU between two boxes of an image.
_MAX_OVERLAP = 0.3
_MAX_OUTSIDE = 0.15
_PLACEMENT_TRIES = 50
_LAYOUT_TRIES = 50
_COLOR_TRIES = 32


@dataclass(frozen=True)
class ShapesConfig:
    """What a generated set looks like.

    Attributes:
        num_images: images in the set.
        image_size: width and height of every image in pixels.
        max_objects: most objects in an image; every number from 1 on is equally likely.
        min_size: shortest longer side of an object before the image border cuts it, as a fraction of ``image_size``.
        max_size: longest such side, likewise.
    """

    num_images: int
    image_size: int = 128
    max_objects: int = 4
    min_size: float = 0.2
    max_size: float = 0.5


@dataclass(frozen=True)
class ShapesImage:
    """One drawn image with its ground truth.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        classes: (N,) int64, positions in ``SHAPE_CLASSES``, in the order in which the objects were drawn.
        boxes: (N, 4) float64, absolute xyxy pixels, tight around what each object would cover were it alone.
    """

    pixels: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _PlacedObject:
    class_index: int
    coverage: FloatArray  # (H,W) in [0,1], fractional along the antialiased edge
    full_area: int  # pixels of the mask before it was cut at the image border

    @property
    def mask(self) -> Mask:
        return _mask(self.coverage)


def _mask(coverage: FloatArray) -> Mask:
    return coverage >= 0.5


def _regular_polygon(num_corners: int, radius: float = 1.0) -> FloatArray:
    angles = np.arange(num_corners) * (2 * np.pi / num_corners)
    return (radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def _square() -> FloatArray:
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)


def _star() -> FloatArray:
    corners = _regular_polygon(10)
    corners[1::2] *= 0.42
    return corners


# Contours around the origin; a second contour is a hole in the first.
_CONTOURS: dict[str, Callable[[], list[FloatArray]]] = {
    "circle": lambda: [_regular_polygon(64)],
    "square": lambda: [_square()],
    "triangle": lambda: [_regular_polygon(3)],
    "star": lambda: [_star()],
    "ring": lambda: [_regular_polygon(64), _regular_polygon(64, radius=0.55)],
}
SHAPE_CLASSES: tuple[str, ...] = tuple(_CONTOURS)


def _tight_box(mask: Mask) -> tuple[float, float, float, float]:
    """Smallest absolute xyxy box around the set pixels of a (H,W) ``mask`` that has at least one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _draw_background(rng: np.random.Generator, image_size: int) -> FloatArray:
    """A (H,W,3) float32 RGB image in [0,1]: two mixed colors, low-frequency noise, a gradient and grain."""
    first, second = (_random_color(rng, saturation=(0.0, 0.6), value=(0.25, 0.85)) for _ in range(2))
    mix = 0.5 * _smooth_noise(rng, image_size, cells=int(rng.integers(3, 7)))
    brightness = 1 + 0.15 * (2 * _smooth_noise(rng, image_size, cells=int(rng.integers(12, 25))) - 1)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, image_size)
    brightness += 0.2 * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None])
    image = (first + mix[..., None] * (second - first)) * brightness[..., None]
    return np.clip(image + _grain(rng, image_size), 0, 1).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, image_size: int, cells: int) -> npt.NDArray[Any]:
    coarse = rng.random((cells, cells), dtype=np.float32)
    return np.clip(cv2.resize(coarse, (image_size, image_size), interpolation=cv2.INTER_CUBIC), 0, 1)


def _grain(rng: np.random.Generator, image_size: int) -> FloatArray:
    return 0.03 * rng.standard_normal((image_size, image_size, 1), dtype=np.float32)


def _random_color(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> FloatArray:
    hsv = [rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]
    return _convert(np.array([[hsv]], np.float32), cv2.COLOR_HSV2RGB)[0, 0]


def _convert(image: FloatArray, code: int) -> FloatArray:
    return cv2.cvtColor(image, code).astype(np.float32, copy=False)


def _place(rng: np.random.Generator, config: ShapesConfig, class_index: int, size: float) -> _PlacedObject:
    """Draws an object of the given size (pixels) at a random place, rotation and aspect ratio."""
    angle, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = rotation @ np.diag([aspect, 1.0])
    contours = [contour @ stretch.T for contour in _CONTOURS[SHAPE_CLASSES[class_index]]()]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    scale = size / (high - low).max()
    extent = (high - low) * scale
    outside = _MAX_OUTSIDE * extent
    corner = rng.uniform(-outside, config.image_size - extent + outside)
    # The whole object is drawn on a canvas with a margin first, to know how much the image border cuts off.
    margin = int(np.ceil(outside.max())) + 1
    placed = [(contour - low) * scale + corner + margin for contour in contours]
    coverage = _rasterize(placed, config.image_size + 2 * margin)
    inside = slice(margin, margin + config.image_size)
    return _PlacedObject(class_index, coverage[inside, inside], int(_mask(coverage).sum()))


def _rasterize(contours: list[npt.NDArray[np.float64]], canvas_size: int) -> FloatArray:
    """(H,W) part of each pixel that lies within the contours (absolute xy pixels of the canvas)."""
    fine = np.zeros((canvas_size * _SUPERSAMPLING,) * 2, np.uint8)
    # OpenCV's integer coordinates are pixel centers, ours are continuous.
    corners = [np.rint(contour * _SUPERSAMPLING - 0.5).astype(np.int32) for contour in contours]
    cv2.fillPoly(fine, corners, 255)
    coverage = cv2.resize(fine, (canvas_size, canvas_size), interpolation=cv2.INTER_AREA)
    return (coverage / 255).astype(np.float32)


def _fits(candidate: _PlacedObject, placed: list[_PlacedObject]) -> bool:
    """Whether boxes overlap little enough and all objects stay visible with the candidate on top."""
    if candidate.mask.sum() < _MIN_VISIBLE * candidate.full_area:
        return False
    box = _tight_box(candidate.mask)
    if any(_iou(box, _tight_box(other.mask)) > _MAX_OVERLAP for other in placed):
        return False
    covered = candidate.mask
    for other in reversed(placed):
        if (other.mask & ~covered).sum() < _MIN_VISIBLE * other.full_area:
            return False
        covered = covered | other.mask
    return True


def _iou(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return intersection / (sum(areas) - intersection)


def _contrasting_color(rng: np.random.Generator, canvas: FloatArray, mask: Mask) -> FloatArray | None:
    """A random RGB color that stands out from what the mask and its surroundings show now, if found."""
    surroundings = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    below = _convert(canvas, cv2.COLOR_RGB2LAB)[surroundings]
    for _ in range(_COLOR_TRIES):
        color = _random_color(rng, saturation=(0.3, 1.0), value=(0.15, 1.0))
        distance = np.linalg.norm(below - _convert(color[None, None], cv2.COLOR_RGB2LAB)[0, 0], axis=1)
        if np.percentile(distance, 5) >= _MIN_CONTRAST:
            return color
    return None


def _draw_layout(
    rng: np.random.Generator, config: ShapesConfig, background: FloatArray
) -> tuple[FloatArray, list[_PlacedObject]] | None:
    """The image and its objects, or None if one of them found no place."""
    canvas, placed = background, list[_PlacedObject]()
    for _ in range(rng.integers(1, config.max_objects, endpoint=True)):
        class_index = int(rng.integers(len(SHAPE_CLASSES)))
        size = config.image_size * rng.uniform(config.min_size, config.max_size)
        for _ in range(_PLACEMENT_TRIES):
            candidate = _place(rng, config, class_index, size)
            if not _fits(candidate, placed):
                continue
            color = _contrasting_color(rng, canvas, candidate.mask)
            if color is not None:
                break
        else:
            return None
        surface = color + _grain(rng, config.image_size)
        canvas = canvas + candidate.coverage[..., None] * (np.clip(surface, 0, 1) - canvas)
        placed.append(candidate)
    return canvas, placed


def draw_image(config: ShapesConfig, split: str, number: int) -> ShapesImage:
    """Draws image ``number`` of a split. It is the same whatever ``config.num_images`` is.

    The name of the split takes part in the seed, so that splits never share images.

    Raises:
        ValueError: the objects do not fit into an image.
    """
    rng = np.random.default_rng([0, zlib.crc32(split.encode()), number])
    background = _draw_background(rng, config.image_size)
    for _ in range(_LAYOUT_TRIES):
        layout = _draw_layout(rng, config, background)
        if layout is not None:
            return _with_ground_truth(*layout)
    raise ValueError(
        f"image {number} of {split!r} found no place for its objects in {_LAYOUT_TRIES} tries: "
        f"lower max_objects ({config.max_objects}) or max_size ({config.max_size})"
    )


def _with_ground_truth(canvas: FloatArray, placed: list[_PlacedObject]) -> ShapesImage:
    return ShapesImage(
        pixels=np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8),
        classes=np.array([item.class_index for item in placed], np.int64),
        boxes=np.array([_tight_box(item.mask) for item in placed], np.float64),
    )
