"""``dsrcnn analyze``."""

from __future__ import annotations

import argparse

from .options import Subparsers, add_command, add_opts

_DESCRIPTION = """Count parameters, FLOPs and activations.
By part of the detector of CONFIG, a path or a name in the model zoo, for one
image at inference, with fvcore. FLOPs count a multiplication with its addition
as one; NMS, sorting and element-wise operations are not counted. Activations
are the outputs of convolutions and matrix products.
KEY VALUE pairs change the config (of a lazy config: KEY=VALUE)."""
_HEADER = ("part", "parameters, M", "GFLOPs", "activations, M")


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "analyze", "CONFIG [OPTION ..] [KEY VALUE ..]", _DESCRIPTION)
    parser.add_argument("config_file", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216], metavar=("H", "W"), help="default 800 1216")
    parser.add_argument(
        "--depth", type=int, default=2, metavar="N", help="levels of parts; 0: only the total; default 2"
    )
    add_opts(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    import logging

    import torch
    from tabulate import tabulate

    from ..modeling.analysis import count_by_part
    from ..prediction.loading import build_untrained

    for name in ("fvcore", "dynamic_sparse_rcnn"):
        logging.getLogger(name).setLevel(logging.ERROR)
    model = build_untrained(args.config_file, args.opts)
    image = torch.randint(0, 256, (3, *args.size), generator=torch.Generator().manual_seed(0)).float()
    rows = [
        ("  " * count.depth + count.name, count.parameters / 1e6, count.flops / 1e9, count.activations / 1e6)
        for count in count_by_part(model, [{"image": image}], args.depth)
    ]
    print(tabulate(rows, _HEADER, floatfmt=("", ".3f", ".3f", ".3f"), preserve_whitespace=True))
