"""``dsrcnn install-detectron2``."""

from __future__ import annotations

import argparse

from .options import Subparsers, add_command, path_of

_DESCRIPTION = """Install detectron2 0.6, if there is no detectron2 yet.
torch and torchvision must be there. The sources come from the package index
that pip uses; their SHA-256 is checked, and they are patched for current
releases of what they build on. Nothing is compiled."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the sub-command."""
    parser = add_command(subparsers, "install-detectron2", "[OPTION ..]", _DESCRIPTION)
    parser.add_argument(
        "--constraint", type=path_of, metavar="FILE", help="pip's constraints for what detectron2 needs"
    )
    parser.add_argument("--sdist", type=path_of, metavar="FILE", help="detectron2's sources, instead of a download")
    parser.add_argument("--wheel-dir", type=path_of, metavar="DIR", help="keep the wheel here")
    parser.add_argument("--build-only", action="store_true", help="make the wheel, install nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Installs it; see :func:`.install`."""
    from ..detectron2_build.install import install

    install(sdist=args.sdist, wheel_dir=args.wheel_dir, build_only=args.build_only, constraint=args.constraint)
