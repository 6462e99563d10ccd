#!/usr/bin/env python3
"""Converts a checkpoint: names of other projects to ours, or one kind of file to another.

What ``MODEL.WEIGHTS`` can name is converted as it is loaded; this writes it to a file, and says what had no place.
Optimisers and hooks are left behind: what is written is for inference, or to start a training from.

    python tools/convert_checkpoint.py --config-file configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml \\
        mmdetection.pth sparse_rcnn.safetensors
    python tools/convert_checkpoint.py --config-file output/mine/config.yaml output/mine/model_final.pth \\
        mine.safetensors --half
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import Tensor

from dynamic_sparse_rcnn.checkpoints import convert_state_dict, read_checkpoint, write_checkpoint
from dynamic_sparse_rcnn.checkpoints.files import as_tensor
from dynamic_sparse_rcnn.prediction.loading import number_of_classes, resolve_config

# What a detector says of itself, beside its weights.
KEPT = ("class_names", "category_ids")
_SHOWN = 10


def main(args: argparse.Namespace) -> None:
    """Writes the converted file; the lines printed say whose it was and what did not fit."""
    checkpoint = read_checkpoint(PathManager.get_local_path(args.source), trust=args.trust_checkpoint)
    wanted = expected_weights(args.config_file, checkpoint["model"])
    conversion = convert_state_dict(checkpoint["model"], wanted)
    weights = {name: as_tensor(value) for name, value in conversion.state_dict.items()}
    print(f"{args.source}: {conversion.source or 'names as they are'}, {len(weights)} tensors")
    missing = [name for name in wanted if name not in weights]
    unknown = [name for name in weights if name not in wanted]
    wrong = [name for name in weights if name in wanted and weights[name].shape != wanted[name].shape]
    for what, names in (
        ("not in the file", missing),
        ("not in the model, left out", [*unknown, *conversion.not_used]),
        ("of another shape than in the model", wrong),
    ):
        if names:
            print(f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' ...' if names[_SHOWN:] else ''}")
    if wrong or len(unknown) == len(weights):
        raise SystemExit(f"error: {args.source} is not of the model that {args.config_file} describes")
    kept = {name: value for name, value in weights.items() if name in wanted}
    extras: dict[str, Any] = {key: checkpoint[key] for key in KEPT if key in checkpoint}
    write_checkpoint(args.target, {"model": halved(kept) if args.half else kept, **extras})
    print(f"Wrote {args.target}, {Path(args.target).stat().st_size / 1e6:.1f} MB")


def expected_weights(config: str, weights: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of the config's model, before it has learned anything."""
    cfg = resolve_config(config, None)
    if not isinstance(cfg, CfgNode):
        state: dict[str, Tensor] = instantiate(cfg.model).state_dict()
        return state
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.CHECKPOINT = False, ""
    if cfg.MODEL.SparseRCNN.NUM_CLASSES == 0:
        cfg.MODEL.SparseRCNN.NUM_CLASSES = number_of_classes(weights)
    state = build_model(cfg).state_dict()
    return state


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """In half precision, but for the statistics of batch norms, whose range it does not have."""
    return {
        name: value.half() if value.is_floating_point() and "running_" not in name else value
        for name, value in weights.items()
    }


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the checkpoint, a path or an address")
    parser.add_argument("target", help=".safetensors or .pth")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path, or name in the model zoo")
    parser.add_argument("--half", action="store_true", help="in half precision")
    parser.add_argument("--trust-checkpoint", action="store_true", help="run code that a pickled checkpoint may hold")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
