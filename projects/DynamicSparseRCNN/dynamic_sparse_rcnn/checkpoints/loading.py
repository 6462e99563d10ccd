"""detectron2's checkpointer, reading safely, writing whole files, and saying what a model got from a checkpoint."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.error import URLError

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..file_io import whole_file
from .classes import DetectorClasses
from .files import Checkpoint, read_checkpoint, write_checkpoint
from .names import convert_state_dict, public_name

logger = logging.getLogger(__name__)

# Part of the names of the layers that have a row for each class.
_CLASS_LAYER = "class_logits"
_MOST_PARTS = 8
# Of batch norms: nothing at inference depends on it.
_COUNTER = "num_batches_tracked"


class SafeCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` for files of any origin.

    Reads ``.safetensors`` too, and runs no code of pickles unless it is told to (see :func:`.files.read_checkpoint`).
    Weights of the projects that :func:`.names.convert_state_dict` knows are converted. A checkpoint takes its place
    once it is written completely, and only then ``last_checkpoint`` points to it.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        trust: bool = False,
        classes: DetectorClasses | None = None,
        **arguments: object,
    ) -> None:
        """
        Args:
            model: whose weights are loaded and saved.
            save_dir: where checkpoints are saved.
            trust: whether pickles may run code.
            classes: of the data that the model is trained or evaluated on. They are saved with the weights, and
                compared with those of a checkpoint that is loaded.
            arguments: those of ``DetectionCheckpointer``.
        """
        super().__init__(model, save_dir, **arguments)
        self.trust = trust
        self.classes = classes

    def load(self, path: str, *args: object, **kwargs: object) -> Checkpoint:
        """As ``DetectionCheckpointer.load``.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be downloaded.
            ValueError: it cannot be read, or (see the subclasses) is not of the model or of its classes.
        """
        plain = path.partition("?")[0]  # newer versions of detectron2 know queries
        if path and "://" not in path and not any(map(self.path_manager.isfile, (path, plain))):
            raise FileNotFoundError(f"There is no checkpoint file {path}")
        try:
            loaded: Checkpoint = super().load(path, *args, **kwargs)
        except URLError as error:
            raise OSError(
                f"The checkpoint {path} cannot be downloaded: {error}. Correct its URL, or try again"
            ) from error
        return loaded

    def _load_file(self, filename: str) -> Checkpoint:
        checkpoint = read_checkpoint(filename, trust=self.trust)
        if filename.endswith((".pkl", ".pyth")):
            return _for_heuristics(checkpoint, filename)
        if "matching_heuristics=True" in getattr(getattr(self, "_parsed_url_during_load", None), "query", ""):
            return checkpoint | {"matching_heuristics": True}
        known = DetectorClasses.from_checkpoint(checkpoint)
        if known is not None and self.classes is not None:
            self._compare_classes(filename, known, self.classes)
        conversion = convert_state_dict(checkpoint["model"], self.model.state_dict())
        if conversion.source:
            logger.info(f"{filename} is of {conversion.source}: {len(conversion.state_dict)} weights converted")
        return checkpoint | {"model": conversion.state_dict}

    def _compare_classes(self, filename: str, known: DetectorClasses, data: DetectorClasses) -> None:
        """What to do about a checkpoint whose classes are not those of the data."""

    def save(self, name: str, **kwargs: object) -> None:
        """Saves the model and what is registered as ``<name>.pth`` in ``save_dir``, with ``kwargs``."""
        if self.save_dir and self.save_to_disk:
            self._write(name, {key: part.state_dict() for key, part in self.checkpointables.items()} | kwargs)
            self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Saves the model alone, with ``kwargs``: no run can be resumed from that, and ``last_checkpoint`` stays."""
        if self.save_dir and self.save_to_disk:
            self._write(name, kwargs)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        classes = self.classes.to_checkpoint() if self.classes is not None else {}
        content = {"model": self.model.state_dict(), **classes, **content}
        file = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {file}")
        # Left by a killed run. Other partial files may belong to a process that is still writing them.
        for name in ("model_*", "last_checkpoint", "config.yaml"):
            for leftover in Path(self.save_dir).glob(f".{name}.*.partial"):
                leftover.unlink(missing_ok=True)
        write_checkpoint(file, content)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Makes ``last_checkpoint`` point to a file of ``save_dir``."""
        with whole_file(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())


class Checkpointer(SafeCheckpointer):
    """``SafeCheckpointer`` for training: one line says what the model got from a checkpoint and what it did not.

    At the start of a training, tensors of another shape start anew, such as the class layers where the number of
    classes differs. Other classes of the same number are warned of: their rows are a start like any other. When a run
    is resumed neither may differ: the optimizer's state belongs to the old tensors and classes.
    """

    _resumes = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> Checkpoint:
        """As ``DetectionCheckpointer``.

        Raises:
            ValueError: a run is resumed with another model or other classes.
        """
        self._resumes = resume and self.has_checkpoint()
        loaded: Checkpoint = super().resume_or_load(path, resume=resume)
        return loaded

    def _compare_classes(self, filename: str, known: DetectorClasses, data: DetectorClasses) -> None:
        difference = known.difference(data.names)
        if difference and self._resumes:
            raise ValueError(f"{filename} cannot be resumed with other classes: {difference}. {self._remedy()}")
        if difference and len(known.names) == len(data.names):  # otherwise the class layers start anew
            logger.warning(f"{filename} was trained on other classes, its class layers are only a start: {difference}")

    def _remedy(self) -> str:
        return (
            f"Resume with the data sets and the config.yaml of {self.save_dir}; or start a new run from these weights: "
            "leave out --resume, name the checkpoint as MODEL.WEIGHTS and give another OUTPUT_DIR."
        )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        if self._resumes:
            _require_whole(incompatible, incompatible.unexpected_keys, self._remedy())
        total = len(self.model.state_dict())
        anew = {name: f"{old} -> {new}" for name, old, new in incompatible.incorrect_shapes}
        missing = [name for name in map(public_name, incompatible.missing_keys) if name not in anew]
        kept = total - len(anew) - len(missing)
        parts = [f"kept {kept} of the model's {total} tensors"]
        if anew:
            parts.append(f"newly initialized, since their shapes differ: {_group(anew)}{_class_note(incompatible)}")
        if missing:
            parts.append(f"newly initialized, since the checkpoint lacks them: {_group(missing)}")
        if incompatible.unexpected_keys:
            parts.append(f"not read, since the model lacks them: {_group(incompatible.unexpected_keys)}")
        level = logging.INFO if kept == total else logging.WARNING
        logger.log(level, "Checkpoint: " + "; ".join(parts))


class StrictCheckpointer(SafeCheckpointer):
    """``SafeCheckpointer`` for evaluation and prediction: all of the model comes from the checkpoint, or it fails."""

    def _compare_classes(self, filename: str, known: DetectorClasses, data: DetectorClasses) -> None:
        known.require(data, filename)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        head = {name for name in self.model.state_dict() if name.startswith("head.")}
        if head and head <= set(incompatible.missing_keys):
            remedy = "A backbone is no detector: name the checkpoint of a whole one."
        else:
            remedy = (
                "Take the config.yaml of the run that wrote it, or set MODEL.SparseRCNN.NUM_CLASSES (of a lazy config "
                "model.head.stages.num_classes) and the other keys as there."
            )
        _require_whole(incompatible, (), remedy)
        super()._log_incompatible_keys(incompatible)


def load_for_evaluation(
    model: nn.Module,
    weights: str,
    output_dir: str = "",
    resume: bool = False,
    trust: bool = False,
    classes: DetectorClasses | None = None,
) -> None:
    """Loads a whole detector from a checkpoint.

    Args:
        model: the detector.
        weights: the checkpoint.
        output_dir: of a run.
        resume: whether to load the last checkpoint of ``output_dir`` instead of ``weights``.
        trust: whether a pickled checkpoint may run code.
        classes: of the data that it is evaluated on.

    Raises:
        FileNotFoundError: there is no such checkpoint, or none to resume.
        ValueError: none is named, part of the model is not in it, or it is of other classes.
    """
    checkpointer = StrictCheckpointer(model, output_dir, trust=trust, classes=classes)
    if resume and not checkpointer.has_checkpoint():
        raise FileNotFoundError(
            f"--eval-only --resume finds no checkpoint in {output_dir}. Correct the output folder, or name a "
            "checkpoint (MODEL.WEIGHTS <file>; of a lazy config train.init_checkpoint=<file>) without --resume."
        )
    if not (resume or weights):
        raise ValueError(
            "An evaluation needs a checkpoint: MODEL.WEIGHTS <file> (of a lazy config train.init_checkpoint=<file>), "
            "or --resume for the last one of the output folder"
        )
    checkpointer.resume_or_load(weights, resume=resume)


def _for_heuristics(checkpoint: Checkpoint, filename: str) -> Checkpoint:
    """Checkpoints of detectron2 itself, and of those whose names its own heuristics know."""
    if "__author__" in checkpoint:
        return checkpoint
    weights = checkpoint["model"].get("blobs", checkpoint["model"])
    author = "pycls" if filename.endswith(".pyth") else "Caffe2"
    left_out = ("num_batches_tracked",) if author == "pycls" else ("_momentum",)
    kept = {name: value for name, value in weights.items() if not name.endswith(left_out)}
    return {"model": kept, "__author__": author, "matching_heuristics": True}


def _require_whole(incompatible: Any, unexpected: Iterable[str], remedy: str) -> None:
    wrong = [name for name, *_ in incompatible.incorrect_shapes]
    wrong += [*map(public_name, incompatible.missing_keys), *unexpected]
    wrong = [name for name in dict.fromkeys(wrong) if not name.endswith(_COUNTER)]
    if wrong:
        raise ValueError(
            f"The checkpoint does not have the model that the config describes: {len(wrong)} tensors, the first "
            f"{wrong[0]}, have another shape or are missing on one side: {_group(wrong)}{_class_note(incompatible)}. "
            f"{remedy}"
        )


def _group(names: Iterable[str]) -> str:
    """Names of tensors by the part of the model, repeated parts as one: ``head.head_series.*.class_logits (12)``."""
    parts = [["*" if part.isdigit() else part for part in name.split(".")[:-1]] for name in dict.fromkeys(names)]
    groups = Counter(".".join(own) for own in parts)
    if len(groups) > _MOST_PARTS:
        groups = Counter(".".join(own[:2]) for own in parts)
    shown = ", ".join(f"{group} ({count})" for group, count in groups.most_common(_MOST_PARTS))
    return shown + (f" and {len(groups) - _MOST_PARTS} more parts" if len(groups) > _MOST_PARTS else "")


def _class_note(incompatible: Any) -> str:
    """The numbers of classes, where they differ."""
    for name, old, new in incompatible.incorrect_shapes:
        if f".{_CLASS_LAYER}." in name:
            return f" ({old[0]} classes in the checkpoint, {new[0]} in the model)"
    return ""
