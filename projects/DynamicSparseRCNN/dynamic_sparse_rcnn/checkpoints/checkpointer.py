"""detectron2's checkpointer, reading safely, converting what other projects call otherwise, writing whole files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..file_io import whole_file
from .classes import DetectorClasses
from .convert import convert_state_dict
from .files import read_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)


class SafeCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` for files of any origin.

    Reads ``.safetensors`` too, and runs no code of pickles unless it is told to (see :func:`.files.read_checkpoint`).
    Weights of the projects that :func:`.convert.convert_state_dict` knows are converted. A checkpoint that is written
    takes its place once it is whole, and only then ``last_checkpoint`` points to it.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        trust: bool = False,
        classes: DetectorClasses | None = None,
        **arguments: Any,
    ) -> None:
        """
        Args:
            model: whose weights are loaded and saved.
            save_dir: where checkpoints are saved.
            trust: whether pickles may run code.
            classes: saved with the weights, for a ``Predictor`` to name what it finds.
            arguments: those of ``DetectionCheckpointer``.
        """
        super().__init__(model, save_dir, **arguments)
        self.trust = trust
        self.classes = classes

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename, trust=self.trust)
        if filename.endswith((".pkl", ".pyth")):
            return _for_heuristics(checkpoint, filename)
        # The query of a path, which newer versions of detectron2 know.
        if "matching_heuristics=True" in getattr(getattr(self, "_parsed_url_during_load", None), "query", ""):
            return checkpoint | {"matching_heuristics": True}
        conversion = convert_state_dict(checkpoint["model"], self.model.state_dict())
        if conversion.source:
            logger.info(f"{filename} is of {conversion.source}: {len(conversion.state_dict)} weights converted")
        return checkpoint | {"model": conversion.state_dict}

    def save(self, name: str, **kwargs: Any) -> None:
        """Saves the model and what is registered as ``<name>.pth`` in ``save_dir``, with ``kwargs``."""
        if not self.save_dir or not self.save_to_disk:
            return
        kwargs = (self.classes.to_checkpoint() if self.classes is not None else {}) | kwargs
        if self._is_remote:
            super().save(name, **kwargs)
            return
        content = {"model": self.model.state_dict()}
        content |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        for leftover in Path(self.save_dir).glob(".*.partial"):  # of a run that was killed
            leftover.unlink()
        file = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {file}")
        write_checkpoint(file, content | kwargs)
        self.tag_last_checkpoint(f"{name}.pth")

    @property
    def _is_remote(self) -> bool:
        """Whether checkpoints go to one of iopath's stores, which take a file as a whole."""
        return "://" in self.save_dir

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Makes ``last_checkpoint`` point to a file of ``save_dir``."""
        if self._is_remote:
            super().tag_last_checkpoint(last_filename_basename)
            return
        with whole_file(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())


def _for_heuristics(checkpoint: dict[str, Any], filename: str) -> dict[str, Any]:
    """Checkpoints of detectron2 itself, and of those whose names its own heuristics know."""
    if "__author__" in checkpoint:
        return checkpoint
    weights = checkpoint["model"].get("blobs", checkpoint["model"])
    author = "pycls" if filename.endswith(".pyth") else "Caffe2"
    left_out = ("num_batches_tracked",) if author == "pycls" else ("_momentum",)
    kept = {name: value for name, value in weights.items() if not name.endswith(left_out)}
    return {"model": kept, "__author__": author, "matching_heuristics": True}
