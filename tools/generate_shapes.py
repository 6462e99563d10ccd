#!/usr/bin/env python3
"""Generates images of shapes, FOLDER/train.json and FOLDER/val.json, for the demo and the tables.

python tools/generate_shapes.py output/shapes
"""

import argparse
from pathlib import Path

from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.errors import add_traceback_option, one_line_errors


def main(arguments: list[str] | None = None) -> None:
    """What exists already, and is the same, is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=4000, metavar="N", help="images to train on; default 4000")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="other images; default 200")
    add_traceback_option(parser)
    args = parser.parse_args(arguments)
    with one_line_errors(args.traceback):
        for split, number in (("train", args.train), ("val", args.val)):
            generate_shapes(args.folder, split, ShapesConfig(num_images=number))


if __name__ == "__main__":
    main()
