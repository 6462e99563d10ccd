"""``dsrcnn eval``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..deploy.metadata import is_exported
from .options import DATA_HELP, Subparsers, add_command, add_run_options, detectron2_arguments, run_options

if TYPE_CHECKING:
    from ..checkpoints.runs import Run

_DESCRIPTION = """Evaluate a run or checkpoint.
RUN_OR_CHECKPOINT is a run's folder, which stands for its best or last
checkpoint, a checkpoint, an exported file, or a name in the model zoo.
Detections go to --output, in COCO's result format.
The last line is "bbox AP .. AP50 .. AP75 ..".
KEY VALUE pairs change the config (of a lazy config: KEY=VALUE)."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "eval", "RUN_OR_CHECKPOINT --data NAME [OPTION ..] [KEY VALUE ..]", _DESCRIPTION)
    parser.add_argument("source", help=argparse.SUPPRESS)
    parser.add_argument("--data", action="append", required=True, metavar="NAME", help=DATA_HELP)
    parser.add_argument("--output", metavar="DIR", help="default: eval/ beside the checkpoint")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluates, in as many processes as are asked for."""
    from ..checkpoints.runs import find_run
    from ..data.formats import expand_folders
    from ..engine.launch import launch
    from .running import run_process

    args.data = expand_folders(args.data, "test", "val")
    if is_exported(args.source):
        evaluate_exported(args)
        return
    found = find_run(args.source, args.config_file)
    beside = Path("output") if "://" in found.checkpoint else Path(found.checkpoint).parent
    output = str(Path(args.output).expanduser() if args.output else beside / "eval")
    options = run_options(found.config_file, output, test=args.data, weights=found.checkpoint)
    options += class_options(found, args.data, args.trust_checkpoint)
    launch(run_process, detectron2_arguments(args, found.config_file, options, eval_only=True))


def evaluate_exported(args: argparse.Namespace) -> None:
    """Evaluates an exported file, in this process, on images as they are: the file says how they are resized.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of other classes than the data, or an option is for checkpoints alone.
    """
    from detectron2.config import get_cfg
    from detectron2.utils.logger import setup_logger

    from ..checkpoints.classes import DetectorClasses
    from ..config import add_dynamic_sparse_rcnn_config
    from ..config_reading import merge_options
    from ..deploy.backends import ExportedDetector
    from ..engine.trainer import Trainer
    from .running import summarize

    given = {"--config-file": args.config_file is not None, "--num-gpus": args.num_gpus != 1}
    if wrong := [option for option, is_given in given.items() if is_given]:
        raise ValueError(
            f"leave out {' and '.join(wrong)}: {args.source} is an exported file, which has its own settings and runs "
            "in one process"
        )
    setup_logger(name="dynamic_sparse_rcnn")
    detector = ExportedDetector(args.source, trust=args.trust_checkpoint)
    metadata = detector.metadata
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    merge_options(cfg, args.opts)
    output = Path(args.output).expanduser() if args.output else Path(args.source).parent / "eval"
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = args.data, str(output)
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST = metadata.image_format, 0
    cfg.MODEL.SparseRCNN.NUM_CLASSES = len(metadata.class_names)
    classes = DetectorClasses(metadata.class_names, metadata.category_ids)
    classes.require(DetectorClasses.from_datasets(args.data), args.source)
    for line in summarize(Trainer.test(cfg, detector)):
        print(line, flush=True)


def class_options(found: Run, data: Sequence[str], trust: bool) -> list[str]:
    """Options for what the config leaves to its training set, which an evaluation need not have.

    Raises:
        ValueError: the checkpoint was trained on other classes than the data have.
    """
    from detectron2.config import CfgNode
    from detectron2.utils.file_io import PathManager

    from ..checkpoints.classes import DetectorClasses, number_of_classes
    from ..checkpoints.files import read_checkpoint
    from ..config_reading import read_config

    cfg = read_config(found.config_file, trust=trust)
    if not isinstance(cfg, CfgNode):
        return []
    content = read_checkpoint(PathManager.get_local_path(found.checkpoint), trust=trust)
    options = []
    if cfg.MODEL.SparseRCNN.NUM_CLASSES == 0:
        options += ["MODEL.SparseRCNN.NUM_CLASSES", str(number_of_classes(content["model"]))]
    known, wanted = DetectorClasses.from_checkpoint(content), DetectorClasses.from_datasets(data)
    if known is not None:
        known.require(wanted, found.checkpoint)
        options += ["DATASETS.TRAIN", "()"]
    return options
