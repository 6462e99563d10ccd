#!/usr/bin/env python3
"""Detects objects in images, folders, glob patterns, video files and the pictures of a camera.

The same as ``dsrcnn predict``, with detectron2's names of the options.

    python tools/demo.py --input docs/shapes.png
    python tools/demo.py --config-file output/mine/config.yaml --weights output/mine/model_final.pth \\
        --input 'photos/*.jpg' clip.mp4 --output output/predictions
    python tools/demo.py --camera 0 --max-frames 300
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dynamic_sparse_rcnn.cli import predict
from dynamic_sparse_rcnn.cli.options import add_import_option
from dynamic_sparse_rcnn.engine.launch import import_modules
from dynamic_sparse_rcnn.errors import add_traceback_option, one_line_errors


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options, as ``predict.run`` takes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", metavar="FILE", help="default: the config's, or our checkpoint of it")
    parser.add_argument("--input", nargs="+", default=[], metavar="PATH", help="images, folders, patterns, videos")
    parser.add_argument("--camera", metavar="N", help="number of a camera, usually 0")
    predict.add_options(parser)
    add_import_option(parser)
    add_traceback_option(parser)
    args = parser.parse_args(arguments)
    args.sources = [*args.input, *([args.camera] if args.camera else [])]
    if not args.sources:
        parser.error("nothing to look at: give --input or --camera")
    return args


if __name__ == "__main__":
    options = parse_args()
    with one_line_errors(options.traceback):
        import_modules(options)
        predict.run(options)
