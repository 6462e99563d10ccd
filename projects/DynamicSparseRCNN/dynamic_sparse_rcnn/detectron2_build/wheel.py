"""Turn the source distribution of detectron2 v0.6 into a patched pure-Python wheel."""

from __future__ import annotations

import base64
import hashlib
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from .patches import COMPILED_OPS, PATCHES, Patch, PatchError

SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# What v0.6 imports, torch and torchvision included, which it leaves to the user. Left out of its own list:
# black==21.4b2 (only used by LazyConfig.to_py), pydot and future (only used by the Caffe2 export).
# iopath has no upper bound: v0.6 works with current releases.
DEPENDENCIES = (
    "torch>=2.3",
    "torchvision",
    "numpy",
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)

# Where the packages of the source distribution go in the wheel.
PACKAGES = {
    "detectron2/": "detectron2/",
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}


class WheelError(ValueError):
    """The wheel cannot be built; the message says why."""


def build_digest() -> str:
    """Eight hex digits that change when anything that shapes the wheel changes."""
    recipe = repr((SHA256, DEPENDENCIES, PACKAGES, COMPILED_OPS, [astuple(patch) for patch in PATCHES]))
    return hashlib.sha256(recipe.encode()).hexdigest()[:8]


VERSION = f"0.6+pure{build_digest()}"
DIST_INFO = f"detectron2-{VERSION}.dist-info/"


def verify(sdist: Path) -> None:
    """Refuse a file whose SHA-256 is not the pinned one."""
    try:
        actual = hashlib.sha256(sdist.read_bytes()).hexdigest()
    except OSError as error:
        raise WheelError(f"cannot read {sdist}: {error.strerror}") from error
    if actual != SHA256:
        raise WheelError(
            f"{sdist.name} has the SHA-256 {actual} instead of {SHA256}: it is not the file that this build was "
            "written for. Do not install it"
        )


def read_packages(sdist: Path) -> dict[str, bytes]:
    """Wheel path -> content of the files that belong in the wheel. Nothing is unpacked to disk."""
    files = {}
    with tarfile.open(sdist) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if name == "LICENSE":
                files[DIST_INFO + "licenses/LICENSE"] = read_member(archive, member)
            for source, target in PACKAGES.items():
                if member.isfile() and name.startswith(source) and ".." not in name:
                    files[target + name[len(source) :]] = read_member(archive, member)
    return files


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    assert content is not None  # only regular files are asked for
    return content.read()


def apply_patches(files: dict[str, bytes], patches: Sequence[Patch] = PATCHES) -> dict[str, bytes]:
    """The files with all patches applied; each changed file ends with a notice of it."""
    patched = dict(files)
    for patch in patches:
        name = "detectron2/" + patch.file
        if name not in files:
            raise PatchError(f"patch of {patch.file} ({patch.reason}) does not fit: there is no such file")
        patched[name] = patch.apply(patched[name].decode()).encode()
    for name in {"detectron2/" + patch.file for patch in patches}:
        patched[name] += b"\n# Changed from detectron2 v0.6: see PATCHES.txt in detectron2's .dist-info folder.\n"
    return patched


def metadata_files() -> dict[str, bytes]:
    """METADATA, WHEEL and the list of patches, as wheel path -> content."""
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: detectron2 v0.6, Python sources only, patched for current releases of its dependencies",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "License: Apache-2.0",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in DEPENDENCIES),
    ]
    wheel = [
        "Wheel-Version: 1.0",
        "Generator: install_detectron2",
        "Root-Is-Purelib: true",
        "Tag: py3-none-any",
    ]
    patches = [f"{p.file}: {p.reason}\n  - {p.old!r}\n  + {p.new!r}\n  {p.count} time(s)" for p in PATCHES]
    patches.append("_C.py: added, stands in for the compiled extension")
    contents = {"METADATA": metadata, "WHEEL": wheel, "PATCHES.txt": patches}
    return {DIST_INFO + name: ("\n".join(lines) + "\n").encode() for name, lines in contents.items()}


def write_wheel(files: dict[str, bytes], directory: Path) -> Path:
    """Pack the files, with a RECORD, as detectron2-<version>-py3-none-any.whl.

    The metadata goes last, so that an interrupted installation never looks like a finished one.
    """
    contents = dict(sorted(files.items(), key=lambda item: (item[0].startswith(DIST_INFO), item[0])))
    record = []
    for name, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}")
    record_name = DIST_INFO + "RECORD"
    contents[record_name] = "\n".join([*record, f"{record_name},,", ""]).encode()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"detectron2-{VERSION}-py3-none-any.whl"
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name)  # a fixed date: the same recipe gives the same bytes
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    partial.replace(path)
    return path


def build_wheel(sdist: Path, directory: Path) -> Path:
    """Verify the source distribution and turn it into a patched wheel in `directory`."""
    verify(sdist)
    files = apply_patches(read_packages(sdist))
    files["detectron2/_C.py"] = COMPILED_OPS.encode()
    return write_wheel({**files, **metadata_files()}, directory)
