#!/usr/bin/env python3
"""Install detectron2 0.6 for this interpreter, unless a detectron2 is there already.

detectron2 is not on the package index under its own name. This tool takes the Python sources of v0.6
from one pinned source distribution of the index that pip is configured for, checks its SHA-256, applies
the patches of detectron2_patches.py, and packs the result as a pure-Python wheel, which pip installs.
Nothing is compiled, and no code of the source distribution runs before its hash is checked.

    python tools/install_detectron2.py                           # torch must be installed
    python tools/install_detectron2.py --build-only --wheel-dir wheels

Only the standard library is used, and the pip of the same interpreter.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2_patches import PATCHES, PatchError
from detectron2_wheel import VERSION, WheelError, build_wheel

REQUIREMENT = "pb1-detectron2==0.6"
OLDEST_PYTHON = (3, 10)
TESTED_PYTHON = "3.10 to 3.13"

STAND_IN_BACKEND = """
import pathlib

class Backend:
    def get_requires_for_build_wheel(self, config_settings=None):
        return []

    def prepare_metadata_for_build_wheel(self, metadata_directory, config_settings=None):
        folder = pathlib.Path(metadata_directory, "pb1_detectron2-0.6.dist-info")
        folder.mkdir()
        folder.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: pb1-detectron2\\nVersion: 0.6\\n")
        return folder.name

__legacy__ = Backend()
"""


class InstallError(Exception):
    """The installation cannot go on; the message says why and what to do."""


def run_pip(arguments: Iterable[str], environment: dict[str, str] | None = None, *, capture: bool = False) -> None:
    """Run this interpreter's pip; with `capture` its output is shown only if it fails."""
    command = [sys.executable, "-m", "pip", *arguments]
    output = subprocess.PIPE if capture else None
    result = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise InstallError(f"{' '.join(command)} failed.\n{result.stdout or ''}".rstrip())


def download(directory: Path) -> Path:
    """Let pip fetch the source distribution, without running any of its code.

    pip wants the metadata of whatever it downloads, for which it would run the distribution's setup.py
    (which imports torch, and whose answer newer versions of pip refuse). A stand-in build backend, put
    before setuptools on the path, answers instead.
    """
    backend = directory / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(STAND_IN_BACKEND)
    path = os.pathsep.join(filter(None, (str(backend.parent), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PIP_USE_PEP517": "1"}
    options = ("--no-deps", "--no-build-isolation", "--no-binary", REQUIREMENT.split("==")[0])
    try:
        run_pip(("download", *options, "--dest", str(directory), REQUIREMENT), environment, capture=True)
        (sdist,) = directory.glob("*.tar.gz")
    except (InstallError, ValueError) as error:
        raise InstallError(
            f"{REQUIREMENT} could not be downloaded.\n{error}\n"
            "Check the network and the index pip uses (pip config list). For a machine without network, "
            "build the wheel on another one (--build-only --wheel-dir DIR) or pass --sdist FILE."
        ) from error
    return sdist


def try_import(*modules: str) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter, not from the working directory; print the first one's place."""
    code = (
        f"import sys; sys.path = [p for p in sys.path if p]; import {', '.join(modules)}; "
        f"print(getattr({modules[0]}, '__version__', 'of unknown version'), 'at', {modules[0]}.__file__)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    output = result.stderr if result.returncode else result.stdout
    return (output.strip().splitlines() or ["no message"])[-1]


def check_torch() -> None:
    result = try_import("torch", "torchvision")
    if result.returncode:
        raise InstallError(
            f"torch and torchvision must be installed first for {sys.executable}; importing them says:\n"
            f"  {last_line(result)}\nInstall a pair that belongs together: pip install torch torchvision"
        )


def installed_version() -> str | None:
    """Version of the detectron2 that pip knows; None also for one that pip never finished installing."""
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return None
    return distribution.version if distribution.files else None


def keep_existing() -> bool:
    """True if a detectron2 is there already, unless it is an older or unfinished one of this tool."""
    version = installed_version()
    if version and version.startswith("0.6+pure") and version != VERSION:
        print(f"detectron2 {version} is an older build of this tool: replacing it", flush=True)
        return False
    result = try_import("detectron2")
    if result.returncode and "No module named 'detectron2'" in result.stderr:
        return False
    parts = try_import("detectron2.engine", "detectron2.model_zoo")
    if parts.returncode and version is None and is_in_site_packages():
        print("detectron2 is there in part, by an interrupted installation: replacing it", flush=True)
        return False
    if result.returncode:
        raise InstallError(
            f"detectron2 is installed but cannot be imported: {last_line(result)}\n"
            "Repair it, or remove it (pip uninstall detectron2) and run this tool again."
        )
    print(f"detectron2 {last_line(result)} is there already: kept")
    if parts.returncode:
        print(f"warning: not all of it can be imported: {last_line(parts)}", file=sys.stderr)
    return True


def is_in_site_packages() -> bool:
    return Path(sysconfig.get_path("purelib"), "detectron2").is_dir()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sdist", type=Path, help=f"use this file instead of downloading {REQUIREMENT}")
    parser.add_argument("--wheel-dir", type=Path, help="keep the wheel in this folder")
    parser.add_argument("--build-only", action="store_true", help="make the wheel, install nothing")
    parser.add_argument("--constraint", type=Path, help="pip constraints for detectron2's dependencies")
    args = parser.parse_args(argv)
    if args.build_only and not args.wheel_dir:
        parser.error("--build-only needs --wheel-dir DIR")
    return args


def install(args: argparse.Namespace) -> None:
    """Build the wheel and install it, as far as the arguments and what is there already ask for."""
    if not args.build_only:
        check_torch()
        if keep_existing():
            return
    with tempfile.TemporaryDirectory() as scratch:
        if not args.sdist:
            print(f"downloading {REQUIREMENT}", flush=True)
        sdist = args.sdist or download(Path(scratch))
        wheel = build_wheel(sdist, args.wheel_dir or Path(scratch))
        print(f"verified {sdist.name}, applied {len(PATCHES)} patches, built {wheel.name}", flush=True)
        if args.build_only:
            print(f"install it with: pip install {wheel}")
            return
        constraint = ("--constraint", str(args.constraint)) if args.constraint else ()
        run_pip(("install", "--quiet", *constraint, str(wheel)))
    result = try_import("detectron2", "detectron2.engine", "detectron2.model_zoo")
    if result.returncode:
        raise InstallError(f"detectron2 was installed, but importing it fails:\n{result.stderr.rstrip()}")
    print(f"installed detectron2 {VERSION} (pure Python, no compiled operators)")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise InstallError(f"Python {TESTED_PYTHON} is needed, this is {sys.version.split()[0]}")
        install(args)
    except (InstallError, PatchError, WheelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
