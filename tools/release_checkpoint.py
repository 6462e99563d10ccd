#!/usr/bin/env python3
"""Makes the small checkpoint that comes with the package: trains, converts, evaluates and records it.

Generates the images, trains on them, writes the weights in half precision beside the table of released checkpoints,
evaluates what was written, and records its hash and result in the table. An interrupted run goes on with ``--resume``.

    python tools/release_checkpoint.py
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from dynamic_sparse_rcnn import model_zoo, read_checkpoint, write_checkpoint
from dynamic_sparse_rcnn.checkpoints.classes import DetectorClasses
from dynamic_sparse_rcnn.checkpoints.files import halved
from dynamic_sparse_rcnn.checkpoints.loading import StrictCheckpointer
from dynamic_sparse_rcnn.checkpoints.released import FOLDER, ReleasedCheckpoint, record_checkpoint, sha256_of
from dynamic_sparse_rcnn.cli.running import summarize
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine.from_yaml import setup
from dynamic_sparse_rcnn.engine.trainer import Trainer
from dynamic_sparse_rcnn.errors import add_traceback_option, one_line_errors
from dynamic_sparse_rcnn.prediction.loading import DEFAULT_CONFIG

SHAPES_FOLDER = Path("output/shapes_large")
COMMAND = "python tools/release_checkpoint.py"
MOST_BYTES = 8_000_000
# More images than the demo's, in a run of its own.
OPTIONS = [
    *("DATASETS.TRAIN", f"('coco:{SHAPES_FOLDER}/train.json:{SHAPES_FOLDER}/train',)"),
    *("DATASETS.TEST", f"('coco:{SHAPES_FOLDER}/val.json:{SHAPES_FOLDER}/val',)"),
    *("OUTPUT_DIR", "output/release"),
]


def main(args: argparse.Namespace) -> None:
    """The last lines printed are the entry of the table."""
    generate_shapes(SHAPES_FOLDER, "train", ShapesConfig(num_images=args.images))
    generate_shapes(SHAPES_FOLDER, "val", ShapesConfig(num_images=args.held_out))
    cfg = setup(argparse.Namespace(**{**vars(args), "opts": [*OPTIONS, *args.opts]}))
    weights = args.weights or train(cfg, args.resume)
    file = args.folder / f"{Path(DEFAULT_CONFIG).stem}.safetensors"
    classes = DetectorClasses.from_datasets(cfg.DATASETS.TRAIN)
    assert classes is not None  # generated just now
    write_checkpoint(file, {"model": halved(read_checkpoint(weights)["model"]), **classes.to_checkpoint()})
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, more than {MOST_BYTES}: make the model smaller")
    options = f" {shlex.join(args.opts)}" if args.opts else ""
    entry = ReleasedCheckpoint(
        config=DEFAULT_CONFIG,
        file=file.name,
        sha256=sha256_of(file),
        command=f"{COMMAND} --images {args.images} --held-out {args.held_out}{options}",
        result=evaluate(cfg, file, args.held_out),
    )
    record_checkpoint(entry, args.folder)
    print(entry)


def train(cfg: CfgNode, resume: bool) -> Path:
    """Trains, and gives the last checkpoint."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return Path(cfg.OUTPUT_DIR) / "model_final.pth"


def evaluate(cfg: CfgNode, file: Path, images: int) -> str:
    """What the written file, not the trained model, gives on the held-out images."""
    model = build_model(cfg)
    StrictCheckpointer(model).load(str(file))
    (numbers,) = summarize(Trainer.test(cfg, model))
    return f"{numbers} on {images} held-out images, weights stored in float16"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options, as ``setup`` wants them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(eval_only=False, config_file=model_zoo.get_config_file(DEFAULT_CONFIG))
    add_traceback_option(parser)
    parser.add_argument("--images", type=int, default=10000, metavar="N", help="to train on")
    parser.add_argument("--held-out", type=int, default=500, metavar="N", help="to evaluate on")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the table; default: the package's own")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a run's last checkpoint, instead of training")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse_args()
    with one_line_errors(options.traceback):
        main(options)
