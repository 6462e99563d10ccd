#!/usr/bin/env python3
"""Makes a video for the demo: a window that wanders over a large generated image of shapes.

With ``--sheet-of`` it puts some frames of a video, such as one that the demo has drawn, side by side in one picture.

    python tools/shapes_video.py output/shapes.avi
    python tools/demo.py --input output/shapes.avi
    python tools/shapes_video.py docs/images/video.jpg --sheet-of output/predictions/shapes.mp4
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dynamic_sparse_rcnn.data.shape_images import ShapesConfig, draw_image
from dynamic_sparse_rcnn.errors import add_traceback_option, one_line_errors
from dynamic_sparse_rcnn.file_io import write_image
from dynamic_sparse_rcnn.prediction.sources import open_source
from dynamic_sparse_rcnn.visualization.figures import image_grid

FRAMES_PER_SECOND = 15
SIDE, CANVAS = 128, 320
# As large, in pixels, as those of the training set.
LANDSCAPE = ShapesConfig(
    num_images=1, image_size=CANVAS, min_objects=12, max_objects=12, min_size=0.1, max_size=0.19, max_overlap=0.1
)
COLUMNS = 4


def frames(number: int) -> Iterator[npt.NDArray[np.uint8]]:
    """(128, 128, 3) uint8 RGB, ``number`` of them."""
    landscape = draw_image(LANDSCAPE, "video", 0).pixels
    room = CANVAS - SIDE
    for index in range(number):
        turn = 2 * math.pi * index / number
        left, top = (round(room * (1 + math.sin(speed * turn)) / 2) for speed in (1, 2))
        yield landscape[top : top + SIDE, left : left + SIDE]


def write_video(path: Path, number: int) -> None:
    """Writes the video, as Motion JPEG, which every OpenCV can.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FRAMES_PER_SECOND, (SIDE, SIDE))
    if not writer.isOpened():
        raise OSError(f"{path} cannot be written: its name must end with .avi")
    for frame in frames(number):
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def write_sheet(path: Path, video: Path) -> None:
    """Writes a picture of frames that are equally far apart.

    Raises:
        OSError: the picture cannot be written, or the video not read.
    """
    pictures = [frame.pixels for frame in open_source(video)]
    chosen = [pictures[round(index)] for index in np.linspace(0, len(pictures) - 1, min(COLUMNS, len(pictures)))]
    write_image(image_grid(chosen, COLUMNS), path)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_traceback_option(parser)
    parser.add_argument("output", type=Path, help="the video (.avi), or the picture")
    parser.add_argument("--frames", type=int, default=75)
    parser.add_argument("--sheet-of", type=Path, metavar="VIDEO", help="make a picture of this video instead")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    """Writes what is asked for."""
    if args.sheet_of:
        write_sheet(args.output, args.sheet_of)
    else:
        write_video(args.output, args.frames)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    options = parse_args()
    with one_line_errors(options.traceback):
        main(options)
