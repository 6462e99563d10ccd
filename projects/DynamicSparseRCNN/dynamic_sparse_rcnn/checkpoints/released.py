"""The checkpoints of this project: a table of files with their hashes, and the addresses that stand for them.

``dynamic-sparse-rcnn://<file>`` in ``MODEL.WEIGHTS`` is a file of the table. What comes with the package is taken from
there, the rest is downloaded once, to iopath's cache; both only if the SHA-256 is the one in the table.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import get_cache_dir

from ..file_io import write_json
from .files import as_tensor, read_checkpoint, write_checkpoint

PREFIX = "dynamic-sparse-rcnn://"
#: The folder of the table, and of the checkpoints that come with the package.
FOLDER = Path(__file__).parents[1] / "released"
_TABLE = "checkpoints.json"


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A line of the table.

    Attributes:
        config: its config, relative to ``configs/``.
        file: its name.
        sha256: of the file, in hexadecimal.
        command: the command that made it.
        result: what an evaluation of it gave, in words.
        address: where it is downloaded from; empty: it comes with the package.
    """

    config: str
    file: str
    sha256: str
    command: str
    result: str
    address: str = ""

    @property
    def url(self) -> str:
        """What ``MODEL.WEIGHTS`` can be."""
        return PREFIX + self.file


def released_checkpoints(folder: Path | None = None) -> tuple[ReleasedCheckpoint, ...]:
    """The table."""
    entries = json.loads(((folder or FOLDER) / _TABLE).read_text(encoding="utf-8"))
    return tuple(ReleasedCheckpoint(**entry) for entry in entries)


def find_released(name: str) -> ReleasedCheckpoint | None:
    """The line of the table for a config or for a URL; None where there is none."""
    return next((entry for entry in released_checkpoints() if name in (entry.config, entry.url)), None)


def record_checkpoint(checkpoint: ReleasedCheckpoint, folder: Path | None = None) -> None:
    """Puts a checkpoint into the table, in the place of one of the same config."""
    folder = folder or FOLDER
    others = [entry for entry in released_checkpoints(folder) if entry.config != checkpoint.config]
    entries = sorted([*others, checkpoint], key=lambda entry: entry.config)
    write_json([asdict(entry) for entry in entries], folder / _TABLE, indent=2)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def local_checkpoint(name: str) -> Path:
    """The verified local file of a checkpoint of the table.

    Raises:
        FileNotFoundError: the table has no such file, or the package lacks it.
        ValueError: its hash is another one than the table's.
    """
    for entry in released_checkpoints():
        if entry.file == name:
            break
    else:
        known = ", ".join(entry.file for entry in released_checkpoints()) or "none yet"
        raise FileNotFoundError(f"There is no released checkpoint {name}; there are: {known}")
    path = Path(PathManager.get_local_path(entry.address)) if entry.address else FOLDER / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from the package: reinstall it")
    found = sha256_of(path)
    if found != entry.sha256:
        raise ValueError(
            f"{path} is not the released {name}: its SHA-256 is {found} instead of {entry.sha256}. Remove it, to "
            "have it downloaded or installed again."
        )
    return path


class ReleasedCheckpointHandler(PathHandler):
    """Makes ``PathManager``, and with it all of detectron2, know the addresses of released checkpoints.

    The local file is a ``.pth`` in single precision in iopath's cache, made from the released one: detectron2's own
    checkpointer reads no safetensors.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        released = local_checkpoint(path.removeprefix(PREFIX))
        cached = Path(get_cache_dir()) / "dynamic_sparse_rcnn" / f"{released.stem}-{sha256_of(released)[:16]}.pth"
        if force or not cached.is_file():
            os.makedirs(cached.parent, exist_ok=True)
            checkpoint = read_checkpoint(released)
            weights = {name: as_tensor(value) for name, value in checkpoint["model"].items()}
            single = {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}
            write_checkpoint(cached, checkpoint | {"model": single})
        return str(cached)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return open(self._get_local_path(path), mode, buffering)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return any(entry.file == path.removeprefix(PREFIX) for entry in released_checkpoints())

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path)


PathManager.register_handler(ReleasedCheckpointHandler(), allow_override=True)
