"""``dsrcnn convert-data``."""

from __future__ import annotations

import argparse

from .options import Subparsers, add_command, path_of

_DESCRIPTION = """Convert a data set to another format, with its images.
NAME is what --data takes elsewhere, but no folder; FORMAT is coco, voc or
yolo. Convert train and val to the same FOLDER, one after the other."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "convert-data", "NAME FORMAT FOLDER [OPTION ..]", _DESCRIPTION)
    parser.add_argument("name", help=argparse.SUPPRESS)
    parser.add_argument("format", choices=("coco", "voc", "yolo"), help=argparse.SUPPRESS)
    parser.add_argument("folder", type=path_of, help=argparse.SUPPRESS)
    parser.add_argument("--split", default="train", metavar="SPLIT", help="name in the new data set; default train")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the data set and prints its new name."""
    from detectron2.utils.logger import setup_logger

    from ..data.convert import convert_dataset

    setup_logger(name="dynamic_sparse_rcnn", abbrev_name="data")
    print(f"Wrote {convert_dataset(args.name, args.format, args.folder, args.split)}")
