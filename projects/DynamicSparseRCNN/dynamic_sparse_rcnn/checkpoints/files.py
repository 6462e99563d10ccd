"""Reading and writing checkpoint files: no code of theirs is run, and none is left half written."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import TRUST_REMEDY, first_line
from ..file_io import whole_file

#: The content of a checkpoint file: the weights under ``model``, beside them whatever its writer kept.
Checkpoint: TypeAlias = dict[str, Any]
SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl", ".pyth", ".bin", ".ckpt", ".tar")
# Under which name a safetensors file's metadata hold what a checkpoint holds besides the weights.
_EXTRAS = "dynamic_sparse_rcnn"
_TORCH = (".pth", ".pt", ".pyth", ".bin", ".ckpt", ".tar")
# What detectron2's own .pkl files are made of.
_ARRAY_PARTS = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


# What reading a pickle that is damaged, or no pickle, can raise.
_DAMAGED = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


class UntrustedCheckpointError(ValueError):
    """A checkpoint could run code. Its argument is the message without the remedy, ``--trust-checkpoint``."""

    def __str__(self) -> str:
        return f"{self.args[0]}; or, {TRUST_REMEDY}"


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it wants to make a {module}.{name}")
        return super().find_class(module, name)


def read_checkpoint(path: str | Path, *, trust: bool = False) -> Checkpoint:
    """What a checkpoint file holds: its weights under ``model``, and whatever else it has.

    ``.safetensors`` cannot hold code. The pickles of PyTorch (``.pth``, ...) and of detectron2 (``.pkl``) can: only
    tensors, arrays and plain containers are made from them, unless ``trust`` is given.

    Args:
        path: a local file.
        trust: whether a pickle that wants to make other objects may do so, which runs whatever code it holds.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedCheckpointError: it is no plain checkpoint, or damaged, and not trusted.
        ValueError: it is of another kind or cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no checkpoint: its suffix is none of {', '.join(SUFFIXES)}")
    read = _read_torch if file.suffix in _TORCH else _read_pickle
    try:
        content = read(file, False)
    except _DAMAGED as error:
        if trust:
            return _with_model(_trusted(read, file), file)
        raise UntrustedCheckpointError(
            f"{path} is damaged, or holds objects other than tensors and plain containers ({first_line(error)}), "
            "which could run code. Save only the state dict"
        ) from error
    return _with_model(content, file)


def _with_model(content: Any, file: Path) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} is no checkpoint: it holds a {type(content).__name__}")
    if isinstance(content.get("model"), Mapping):
        return dict(content)
    for key in ("state_dict", "model_state", "model_state_dict"):
        if isinstance(content.get(key), Mapping):
            rest = {name: value for name, value in content.items() if name != key}
            return {"model": dict(content[key]), **rest}
    return {"model": dict(content)}


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            extras = json.loads((opened.metadata() or {}).get(_EXTRAS, "{}"))
            return {"model": {name: opened.get_tensor(name) for name in opened.keys()}, **extras}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged, or is not a safetensors file: {first_line(error)}") from error


def _read_torch(file: Path, trust: bool) -> Any:
    # Files of MAE, and of others whose scripts follow it, hold the arguments of their runs besides the weights.
    # (PyTorch 2.4 can only add for good.)
    torch.serialization.add_safe_globals([argparse.Namespace])
    return torch.load(file, map_location="cpu", weights_only=not trust)


def _read_pickle(file: Path, trust: bool) -> Any:
    kind = pickle.Unpickler if trust else _ArrayUnpickler
    with file.open("rb") as opened:
        return kind(opened, encoding="latin1").load()


def _trusted(read: Callable[[Path, bool], Any], file: Path) -> Any:
    try:
        return read(file, True)
    except ImportError as error:
        raise ValueError(
            f"{file} holds objects of a library that is not installed ({error}): install it, or save only "
            "the state dict on a machine that has it"
        ) from error
    except _DAMAGED as error:
        raise ValueError(f"{file} is damaged: {first_line(error)}") from error


def write_checkpoint(path: str | Path, content: Checkpoint) -> None:
    """Writes a checkpoint as ``.safetensors`` or ``.pth``; until it is whole, the file is what it was before.

    Args:
        path: the file.
        content: the weights under ``model``; a safetensors file takes besides what JSON can hold.

    Raises:
        OSError: the file cannot be written; the disk may be full.
        ValueError: another suffix, or something that the kind of file cannot hold.
    """
    file = Path(path)
    if file.suffix == ".safetensors":
        _write_safetensors(file, content)
    elif file.suffix in (".pth", ".pt"):
        with whole_file(file) as opened:
            torch.save(dict(content), opened)
    else:
        raise ValueError(f"{path}: checkpoints are written as .safetensors or .pth")


def _write_safetensors(file: Path, content: Mapping[str, Any]) -> None:
    from safetensors.torch import save

    try:
        extras = json.dumps({name: value for name, value in content.items() if name != "model"})
    except TypeError as error:
        raise ValueError(
            f"{file}: besides weights, a .safetensors file can only hold what JSON can ({error}). Write a .pth instead"
        ) from error
    # Copies, since tensors that share their memory are refused.
    weights = {name: as_tensor(value).detach().cpu().clone().contiguous() for name, value in content["model"].items()}
    with whole_file(file) as opened:
        opened.write(save(weights, metadata={_EXTRAS: extras}))


def as_tensor(value: Tensor | np.ndarray) -> Tensor:
    """The tensor of a weight, which detectron2's files hold as an array."""
    return value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in half precision, but for the statistics of batch norms, which may be out of its range."""
    return {
        name: value.half() if value.is_floating_point() and "running_" not in name else value
        for name, value in weights.items()
    }
