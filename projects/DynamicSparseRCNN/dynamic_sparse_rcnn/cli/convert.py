"""``dsrcnn convert``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import Subparsers, add_command, add_trust_option, path_of

if TYPE_CHECKING:
    from torch import Tensor

_DESCRIPTION = """Convert a checkpoint.
From names of other projects to ours, or from one kind of file to another.
FROM is a file, a URL or a run; TO ends with .safetensors or .pth. Optimizers
and hooks are left out: TO is for inference, or to start a training from.
(Not needed before loading: MODEL.WEIGHTS accepts the same files.)"""

# What a detector says of itself, beside its weights.
_KEPT = ("class_names", "category_ids")
_SHOWN = 10
# Parts of a detector of which a checkpoint of the model has nothing left over; backbones may have a classifier.
_PARTS = ("head.", "proposal_generator.", "init_proposal_")
# Of batch norms: nothing at inference depends on it.
_COUNTER = "num_batches_tracked"


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "convert", "FROM TO [OPTION ..]", _DESCRIPTION)
    parser.add_argument("source", help=argparse.SUPPRESS)
    parser.add_argument("target", type=path_of, help=argparse.SUPPRESS)
    parser.add_argument("--config-file", metavar="FILE", help="default: config.yaml beside FROM")
    parser.add_argument("--half", action="store_true", help="store the weights in half precision")
    add_trust_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the converted file; the lines printed say whose names it had and what did not fit.

    Raises:
        ValueError: the checkpoint is not of the config's model.
    """
    from detectron2.utils.file_io import PathManager

    from ..checkpoints import convert_state_dict, read_checkpoint, write_checkpoint
    from ..checkpoints.classes import number_of_classes
    from ..checkpoints.files import as_tensor, halved
    from ..checkpoints.runs import find_run
    from ..prediction.loading import build_untrained

    found = find_run(args.source, args.config_file)
    checkpoint = read_checkpoint(PathManager.get_local_path(found.checkpoint), trust=args.trust_checkpoint)
    classes = number_of_classes(checkpoint["model"])
    model = build_untrained(found.config_file, num_classes=classes, trust=args.trust_checkpoint)
    wanted = model.state_dict()
    conversion = convert_state_dict(checkpoint["model"], wanted)
    weights = {name: as_tensor(value) for name, value in conversion.state_dict.items()}
    print(f"{found.checkpoint}: {conversion.source or 'names as they are'}, {len(weights)} tensors")
    if misfits := _find_misfits(weights, wanted, conversion.not_used):
        raise ValueError(
            f"{found.checkpoint} does not fit the model that {found.config_file} describes, in {len(misfits)} tensors "
            f"such as {', '.join(misfits[:3])}: name its own config with --config-file"
        )
    kept = {name: value for name, value in weights.items() if name in wanted}
    extras = {key: checkpoint[key] for key in _KEPT if key in checkpoint}
    write_checkpoint(args.target, {"model": halved(kept) if args.half else kept, **extras})
    print(f"Wrote {args.target}, {args.target.stat().st_size / 1e6:.1f} MB")


def _find_misfits(weights: dict[str, Tensor], wanted: dict[str, Tensor], not_used: tuple[str, ...]) -> list[str]:
    """The names by which the weights are not the model's; prints all that differs."""
    missing = [name for name in wanted if name not in weights]
    unknown = [name for name in weights if name not in wanted]
    wrong = [name for name in weights if name in wanted and weights[name].shape != wanted[name].shape]
    for what, names in (
        ("not in the file", missing),
        ("not in the model, left out", [*unknown, *not_used]),
        ("of another shape than in the model", wrong),
    ):
        if names:
            print(f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' ...' if names[_SHOWN:] else ''}")
    lacking = [name for name in missing if not name.endswith(_COUNTER)]
    return [*wrong, *lacking, *(name for name in unknown if name.startswith(_PARTS))]
