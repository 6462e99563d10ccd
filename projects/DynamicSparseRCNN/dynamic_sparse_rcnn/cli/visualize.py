"""``dsrcnn visualize``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import add_traceback_option, one_line_errors
from .options import (
    DATA_HELP,
    Subparsers,
    add_command,
    add_import_option,
    add_opts,
    add_trust_option,
    path_of,
    run_options,
)

_DESCRIPTION = """Draw how a detector works.
WHAT is one of
  assignment: which proposals learn from which ground truth, stage by stage.
  proposals: each expert's boxes beside the boxes that are mixed from them.
  stages: the best proposals before and after each stage.
  detections: what is found, beside the ground truth.
RUN_OR_FILE is a run's folder, a checkpoint, or a name in the model zoo.
KEY VALUE pairs change the config."""
_USAGE = "WHAT RUN_OR_FILE --data NAME [OPTION ..] [KEY VALUE ..]"
#: How many images are drawn where none is named.
DEFAULT_IMAGES = {"assignment": 1, "proposals": 3, "stages": 1, "detections": 8}


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "visualize", _USAGE, _DESCRIPTION)
    parser.add_argument("what", choices=tuple(DEFAULT_IMAGES), help=argparse.SUPPRESS)
    parser.add_argument("source", help=argparse.SUPPRESS)
    parser.add_argument("--data", action="append", required=True, metavar="NAME", help=DATA_HELP)
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="name in the data set; repeatable")
    parser.add_argument("--proposals", type=int, default=8, metavar="N", help="how many to draw; default 8")
    parser.add_argument("--output", type=path_of, metavar="FILE", help="default: output/assignment.png, ..")
    parser.add_argument("--config-file", metavar="FILE", help="a path, or a name in the model zoo")
    add_trust_option(parser)
    add_opts(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the figure."""
    from ..checkpoints.runs import find_run
    from ..data.formats import expand_folders
    from .eval import class_options

    args.data = expand_folders(args.data, "test", "val", "train")
    found = find_run(args.source, args.config_file)
    options = run_options(found.config_file, "output", test=args.data, weights=found.checkpoint)
    options += [*class_options(found, args.data, args.trust_checkpoint), *args.opts]
    output = args.output or Path(f"output/{args.what}.png")
    draw(args.what, found.config_file, options, args.image, output, args.proposals, args.trust_checkpoint)


def draw(
    what: str,
    config_file: str,
    options: Sequence[str],
    images: Sequence[str],
    output: Path,
    num_proposals: int = 8,
    trust: bool = False,
) -> None:
    """Writes one of the figures for images of the config's ``DATASETS.TEST``.

    Raises:
        ValueError: the config is lazy, an image is not in the data, or the detector has no such figure.
    """
    from detectron2.config import CfgNode

    from ..config_reading import read_config
    from ..file_io import write_image
    from ..visualization import method
    from ..visualization.figures import image_grid

    cfg = read_config(config_file, options, trust=trust)
    if not isinstance(cfg, CfgNode):
        raise ValueError(f"{config_file} is a lazy config: these figures need a yaml config")
    detector = method.build_detector(cfg, trust)
    records = method.find_records(cfg, images, DEFAULT_IMAGES[what])
    if what == "proposals":
        figure, variance = method.visualize_proposals(cfg, detector, records, num_proposals)
        print(f"Variance of the experts' weights over the {len(records)} images: {variance:.4f}")
    elif what == "assignment":
        figure = image_grid([method.visualize_assignment(cfg, detector, record) for record in records], columns=1)
    elif what == "stages":
        figure = image_grid([method.visualize_stages(cfg, detector, r, num_proposals) for r in records], columns=1)
    else:
        figure = image_grid([method.visualize_detections(cfg, detector, record) for record in records], columns=2)
    write_image(figure, output)
    print(f"Wrote {output}")


def run_tool(what: str, description: str) -> None:
    """The command of ``tools/visualize_*.py``, which takes a config whose ``DATASETS.TEST`` has the images."""
    from ..engine.launch import import_modules

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--image", action="append", default=[], help="file name in the data set; repeatable")
    parser.add_argument("--proposals", type=int, default=8, metavar="N", help="how many to draw")
    parser.add_argument("--output", type=path_of, default=Path(f"output/{what}.png"), metavar="FILE")
    for add in (add_import_option, add_trust_option, add_traceback_option):
        add(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the config")
    args = parser.parse_args()
    with one_line_errors(args.traceback):
        import_modules(args)
        draw(what, args.config_file, args.opts, args.image, args.output, args.proposals, args.trust_checkpoint)
