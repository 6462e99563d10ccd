"""``dsrcnn predict``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..deploy.metadata import SUFFIXES, is_exported
from .options import Subparsers, add_command, add_trust_option, path_of

_DESCRIPTION = """Detect objects in images and videos.
SOURCE: a file, folder, pattern ('*.jpg'), URL, or a camera's number or stream.
detections.json (COCO's result format) and pictures go to --output.
An interrupted job continues when it is started again; under torchrun the
processes share the images."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "predict", "SOURCE .. [OPTION ..]", _DESCRIPTION)
    parser.add_argument("sources", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--weights", metavar="RUN_OR_FILE", help="default: a small detector of shapes")
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ``tools/demo.py`` has too."""
    parser.add_argument("--config-file", metavar="FILE", help="default: config.yaml beside the checkpoint")
    parser.add_argument(
        "--output", type=path_of, default=Path("output/predictions"), metavar="DIR", help="default: output/predictions"
    )
    parser.add_argument("--score-threshold", type=float, metavar="S", help="default: the exported file's, or 0.5")
    parser.add_argument("--tiles", type=int, metavar="PIXELS", help="also run on tiles of large images")
    parser.add_argument("--track", action="store_true", help="follow objects through videos")
    parser.add_argument("--no-draw", action="store_true", help="write only detections.json")
    parser.add_argument("--max-frames", type=int, metavar="N", help="maximum number of frames per source")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once; default 1")
    parser.add_argument("--precision", metavar="P", help="float16 or bfloat16; default float32")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ..")
    add_trust_option(parser)


def run(args: argparse.Namespace) -> None:
    """Predicts, and prints what was found, where it is and how long it took.

    Raises:
        OSError: nothing could be read, or a file not be written.
        ValueError: an option is out of its range, or an image lies in the folder that pictures are written to.
    """
    from detectron2.utils.logger import setup_logger

    from ..engine.launch import processes_of_torchrun
    from ..prediction.job import JobOptions, predict_to_files
    from ..prediction.loading import is_trained
    from ..prediction.predictor import Predictor
    from ..prediction.sources import open_source

    if args.weights is None and is_trained(args.config_file):
        args.weights, args.config_file = args.config_file, None
    with processes_of_torchrun() as (rank, device):
        setup_logger(distributed_rank=rank, name="dynamic_sparse_rcnn")
        sources = [open_source(int(x) if x.isdecimal() and not Path(x).exists() else x) for x in args.sources]
        predictor = Predictor(
            args.config_file,
            args.weights,
            device=_device(args, device),
            score_threshold=args.score_threshold,
            batch_size=args.batch_size,
            precision=args.precision,
            tiles=args.tiles,
            trust_checkpoint=args.trust_checkpoint,
        )
        options = JobOptions(args.output, not args.no_draw, args.max_frames, args.track)
        predict_to_files(predictor, sources, options, settings_of(args))


def _device(args: argparse.Namespace, own: str | None) -> str | None:
    """The device that was asked for, or the process's own GPU, which OpenVINO and torch programs do not run on."""
    file = args.weights or args.config_file
    takes_own = not is_exported(file) or Path(file).suffix == SUFFIXES["onnx"]
    return args.device or (own if takes_own else None)


def settings_of(args: argparse.Namespace) -> dict[str, object]:
    """What the detections depend on."""
    from ..checkpoints.runs import find_checkpoint

    names = ("config_file", "weights", "score_threshold", "tiles", "track", "max_frames", "precision")
    settings = {name: getattr(args, name) for name in names}
    file = Path(find_checkpoint(args.weights)) if args.weights else None
    return settings | {"state of the weights": file.stat().st_mtime if file and file.is_file() else None}
