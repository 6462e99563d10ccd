"""Installs detectron2 0.6 for this interpreter, unless there is a detectron2 already.

detectron2 is not on the package index under its own name. The Python sources of v0.6 come from one pinned source
distribution of the index that pip is configured for. Its SHA-256 is checked, the patches are applied, and the result is
packed as a pure-Python wheel, which pip installs. Nothing is compiled, and no code of the source distribution runs.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .patches import PATCHES
from .wheel import VERSION, build_wheel

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


class InstallError(RuntimeError):
    """detectron2 cannot be installed; the message says why and what to do."""


def run_pip(arguments: Iterable[str], environment: dict[str, str] | None = None, *, capture: bool = False) -> None:
    """Runs this interpreter's pip; with ``capture`` its output is shown only if it fails."""
    command = [sys.executable, "-m", "pip", *arguments]
    output = subprocess.PIPE if capture else None
    result = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        print(result.stdout or "", end="", file=sys.stderr)
        raise InstallError(f"{' '.join(command)} failed, pip says why above")


def download(directory: Path) -> Path:
    """Lets pip fetch the source distribution, without running any of its code.

    pip wants the metadata of whatever it downloads, for which it would run the distribution's setup.py (which imports
    torch, and whose answer newer versions of pip refuse). A stand-in build backend, put before setuptools on the path,
    answers instead.
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
            f"{REQUIREMENT} could not be downloaded (pip says why above): check the network and the index that pip "
            "uses (pip config list). For a machine without network, build the wheel on another one (--build-only "
            "--wheel-dir DIR), or pass --sdist FILE"
        ) from error
    return sdist


def try_import(*modules: str) -> subprocess.CompletedProcess[str]:
    """Imports modules in a fresh interpreter, not from the working directory, which prints where the first one is."""
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
            f"torch and torchvision must be installed for {sys.executable} first (importing them says: "
            f"{last_line(result)}). Install a pair that belongs together: pip install torch torchvision"
        )


def installed_version() -> str | None:
    """The version of the detectron2 that pip knows; None also for one that pip never finished installing."""
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return None
    return distribution.version if distribution.files else None


def keep_existing() -> bool:
    """Whether there is a detectron2 already that is not an older or unfinished build of this package."""
    version = installed_version()
    if version and version.startswith("0.6+pure") and version != VERSION:
        print(f"detectron2 {version} is an older build of this package: replacing it", flush=True)
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
            f"detectron2 is installed but cannot be imported ({last_line(result)}): repair it, or remove it "
            "(pip uninstall detectron2) and run this again"
        )
    print(f"detectron2 {last_line(result)} is there already: kept")
    if parts.returncode:
        print(f"warning: not all of it can be imported: {last_line(parts)}", file=sys.stderr)
    return True


def is_in_site_packages() -> bool:
    return Path(sysconfig.get_path("purelib"), "detectron2").is_dir()


def install(
    *,
    sdist: Path | None = None,
    wheel_dir: Path | None = None,
    build_only: bool = False,
    constraint: str | Path | None = None,
) -> None:
    """Builds the wheel and installs it, as far as that is needed.

    Args:
        sdist: the source distribution; None: it is downloaded.
        wheel_dir: folder that keeps the wheel; None: it is not kept.
        build_only: whether to install nothing.
        constraint: file of pip's constraints for detectron2's dependencies.

    Raises:
        InstallError: Python is too old, torch is missing, or pip or the import failed.
        ValueError: ``build_only`` without ``wheel_dir``; or the source distribution is not the expected one.
    """
    if sys.version_info < OLDEST_PYTHON:
        raise InstallError(f"Python {TESTED_PYTHON} is needed, this is {sys.version.split()[0]}")
    if build_only and wheel_dir is None:
        raise ValueError("--build-only needs --wheel-dir DIR")
    if not build_only:
        check_torch()
        if keep_existing():
            return
    with tempfile.TemporaryDirectory() as scratch:
        if sdist is None:
            print(f"downloading {REQUIREMENT}", flush=True)
            sdist = download(Path(scratch))
        wheel = build_wheel(sdist, wheel_dir or Path(scratch))
        print(f"verified {sdist.name}, applied {len(PATCHES)} patches, built {wheel.name}", flush=True)
        if build_only:
            print(f"install it with: pip install {wheel}")
            return
        run_pip(("install", "--quiet", *(("--constraint", str(constraint)) if constraint else ()), str(wheel)))
    result = try_import("detectron2", "detectron2.engine", "detectron2.model_zoo")
    if result.returncode:
        raise InstallError(f"detectron2 was installed, but importing it fails: {last_line(result)}")
    print(f"installed detectron2 {VERSION} (pure Python, no compiled operators)")
