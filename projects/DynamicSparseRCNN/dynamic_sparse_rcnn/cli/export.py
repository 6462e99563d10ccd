"""``dsrcnn export``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..deploy.metadata import SUFFIXES
from .options import Subparsers, add_command, add_trust_option, path_of

if TYPE_CHECKING:
    from ..deploy.metadata import ExportMetadata
    from ..prediction.loading import LoadedDetector

_DESCRIPTION = """Write a detector to an ONNX, OpenVINO or .pt2 file.
RUN_OR_CHECKPOINT is a run's folder, a checkpoint, or a name in the model zoo.
The file takes uint8 images and gives boxes in the original image, scores and
classes. Predictor(FILE), dsrcnn predict --weights FILE and dsrcnn eval FILE
run it."""

# More take longer and change little.
_CALIBRATION_IMAGES = 100


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "export", "RUN_OR_CHECKPOINT --output FILE [OPTION ..]", _DESCRIPTION)
    parser.add_argument("source", help=argparse.SUPPRESS)
    parser.add_argument(
        "--format", choices=SUFFIXES, metavar="F", help="onnx, openvino or torch; default: by FILE's suffix"
    )
    parser.add_argument("--output", type=path_of, required=True, metavar="FILE", help="NAME.onnx, .xml or .pt2")
    parser.add_argument("--size", type=_size, metavar="HxW", help="size of the input; default: dynamic")
    parser.add_argument("--half", action="store_true", help="store the weights in half precision")
    parser.add_argument("--int8", action="store_true", help="8-bit weights and arithmetic")
    parser.add_argument("--calibration", metavar="NAME", help="data set to measure ranges on, for --int8")
    parser.add_argument("--no-nms", action="store_true", help="leave NMS to the program that runs the file")
    parser.add_argument("--config-file", metavar="FILE", help="default: config.yaml beside the checkpoint")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="threshold that FILE names; default 0.5"
    )
    add_trust_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Exports, and prints what was written.

    Raises:
        ImportError: a package that the format needs is missing.
        ValueError: an option does not go with another, or the detector cannot be exported.
    """
    from ..checkpoints.runs import find_run
    from ..data.formats import expand_folders
    from ..deploy.export import EXPORTERS
    from ..prediction.loading import load_detector

    if args.int8 and (args.half or not args.calibration):
        raise ValueError("--int8 needs --calibration NAME, a data set of images to measure on, and excludes --half")
    if args.calibration and not args.int8:
        raise ValueError("--calibration is for --int8: add --int8, or leave out --calibration")
    if not 0 <= args.score_threshold <= 1:
        raise ValueError(f"--score-threshold must lie in [0, 1], got {args.score_threshold}")
    form = _format(args)
    found = find_run(args.source, args.config_file)
    loaded = load_detector(found.config_file, found.checkpoint, "cpu", args.trust_checkpoint)
    metadata = describe(loaded, found.checkpoint, args)
    names = expand_folders([args.calibration], "train") if args.calibration else []
    calibration = [file for name in names for file in _image_files(name, len(metadata.class_names))]
    EXPORTERS[form](loaded.model, args.output, metadata, calibration)
    print(f"Wrote {args.output}, {args.output.stat().st_size / 1e6:.1f} MB")


def _format(args: argparse.Namespace) -> str:
    by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}.get(args.output.suffix)
    if by_suffix is None or args.format not in (None, by_suffix):
        raise ValueError(f"--output {args.output} must end with {SUFFIXES.get(args.format, '.onnx, .xml or .pt2')}")
    return by_suffix


def _image_files(name: str, num_classes: int) -> list[str]:
    """Some images of a data set, from all over it."""
    from ..data.checks import load_checked_dataset

    files = [str(record["file_name"]) for record in load_checked_dataset(name, num_classes=num_classes)]
    return files[:: -(-len(files) // _CALIBRATION_IMAGES)]


def describe(loaded: LoadedDetector, checkpoint: str, args: argparse.Namespace) -> ExportMetadata:
    """What the file is to say of the detector."""
    from detectron2.utils.file_io import PathManager

    from .. import __version__
    from ..checkpoints.released import find_released, sha256_of
    from ..deploy.exportable import require_exportable
    from ..deploy.inputs import find_resize
    from ..deploy.metadata import ExportMetadata

    detector = require_exportable(loaded.model)
    released = find_released(checkpoint)
    short_edge, max_size = find_resize(loaded.augmentations.augs)
    return ExportMetadata(
        sparse_rcnn_version=__version__,
        checkpoint_sha256=released.sha256 if released else sha256_of(PathManager.get_local_path(checkpoint)),
        class_names=loaded.classes.names,
        category_ids=loaded.classes.category_ids,
        image_format=loaded.image_format,
        size=args.size,
        divisibility=max(1, detector.backbone.size_divisibility),
        short_edge=short_edge,
        max_size=max_size,
        score_threshold=args.score_threshold,
        nms_threshold=detector.nms_threshold,
        nms_inside=not args.no_nms,
        num_detections=detector.num_detections,
        precision="int8" if args.int8 else "float16" if args.half else "float32",
    )


def _size(text: str) -> tuple[int, int] | None:
    if text == "dynamic":
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, as in 480x640, nor dynamic")
    return int(height), int(width)
