"""``dsrcnn inspect``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import Subparsers, add_command, path_of

_DESCRIPTION = """Show what is in data sets.
Counts, classes, box sizes, problems, and a picture of samples as a training
with --config-file would get them.
NAME: coco:JSON:FOLDER, voc:FOLDER:SPLIT or another form, or registered."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "inspect", "NAME .. [OPTION ..]", _DESCRIPTION)
    parser.add_argument("names", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--config-file", metavar="FILE", help="default: that of dsrcnn train")
    parser.add_argument("--images", type=int, default=12, metavar="N", help="samples of each data set; default 12")
    parser.add_argument(
        "--output", type=path_of, default=Path("output/samples.png"), metavar="FILE", help="default: output/samples.png"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE ..", help="config changes; must come last"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints what each data set holds, and draws the samples.

    Raises:
        ValueError: a data set cannot be used, or two of them have different classes.
    """
    from detectron2.utils.logger import setup_logger

    from ..config_reading import read_config
    from ..data.datasets import check_same_classes
    from ..data.formats import expand_folders
    from ..errors import EXPECTED_ERRORS, describe
    from ..file_io import write_image
    from ..visualization.figures import image_grid
    from ..visualization.samples import SAMPLES_A_ROW, inspect_dataset
    from .train import DEFAULT_CONFIG

    setup_logger(name="dynamic_sparse_rcnn", abbrev_name="data")
    cfg = read_config(args.config_file or DEFAULT_CONFIG, args.opts)
    panels, unusable, names = [], [], expand_folders(args.names)
    for name in names:
        try:
            text, samples = inspect_dataset(cfg, name, args.images)
        except EXPECTED_ERRORS as error:
            print(f"error: {name} cannot be used: {describe(error)}")
            unusable.append(name)
        else:
            print(text)
            panels += samples
    if panels:
        write_image(image_grid(panels, SAMPLES_A_ROW), args.output)
        print(f"Wrote {args.output}: {len(panels)} samples as the training gets them")
    if unusable:
        raise ValueError(f"{len(unusable)} of {len(names)} data sets cannot be used: {', '.join(unusable)}")
    check_same_classes(names)
