"""Loading checkpoints: one line on what was kept, an error where a run goes on, or is evaluated, with another model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn

from .checkpointer import SafeCheckpointer
from .names import public_name

logger = logging.getLogger(__name__)

# Part of the names of the layers that have a row for each class.
_CLASS_LAYER = "class_logits"
_MOST_PARTS = 8
# Of batch norms: nothing at inference depends on it.
_COUNTER = "num_batches_tracked"


class Checkpointer(SafeCheckpointer):
    """``SafeCheckpointer`` that tells in one line what a model got from a checkpoint and what it did not.

    Tensors of another shape start anew, such as the class layers where the number of classes differs. Not so in a run
    that goes on: the optimiser's state is that of the old tensors, and would be written over other memory.
    """

    _resumes = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As ``DetectionCheckpointer``.

        Raises:
            ValueError: if the run goes on from a checkpoint of another model.
        """
        self._resumes = resume and self.has_checkpoint()
        loaded: dict[str, Any] = super().resume_or_load(path, resume=resume)
        return loaded

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        if self._resumes:
            _require_whole(
                incompatible,
                incompatible.unexpected_keys,
                f"Go on with the config.yaml of {self.save_dir}; or start a new run from these weights: leave out "
                "--resume, name the checkpoint as MODEL.WEIGHTS and give another OUTPUT_DIR.",
            )
        total = len(self.model.state_dict())
        anew = {name: f"{old} -> {new}" for name, old, new in incompatible.incorrect_shapes}
        missing = [name for name in map(public_name, incompatible.missing_keys) if name not in anew]
        kept = total - len(anew) - len(missing)
        parts = [f"kept {kept} of the model's {total} tensors"]
        if anew:
            parts.append(f"of another shape, these start anew: {_group(anew)}{_class_note(incompatible)}")
        if missing:
            parts.append(f"not in the checkpoint, these start anew: {_group(missing)}")
        if incompatible.unexpected_keys:
            parts.append(f"not in the model, these are not read: {_group(incompatible.unexpected_keys)}")
        level = logging.INFO if kept == total else logging.WARNING
        logger.log(level, "Checkpoint: " + "; ".join(parts))


class StrictCheckpointer(SafeCheckpointer):
    """``SafeCheckpointer`` for evaluations and predictions: all of the model has to come from the checkpoint."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        head = {name for name in self.model.state_dict() if name.startswith("head.")}
        if head and head <= set(incompatible.missing_keys):
            remedy = "A backbone is no detector: name the checkpoint of a whole one."
        else:
            remedy = (
                "Take the config.yaml of the run that wrote it, or set MODEL.SparseRCNN.NUM_CLASSES and the other keys "
                "as there."
            )
        _require_whole(incompatible, (), remedy)
        super()._log_incompatible_keys(incompatible)


def _require_whole(incompatible: Any, unexpected: Iterable[str], remedy: str) -> None:
    wrong = [name for name, *_ in incompatible.incorrect_shapes]
    wrong += [*map(public_name, incompatible.missing_keys), *unexpected]
    wrong = [name for name in dict.fromkeys(wrong) if not name.endswith(_COUNTER)]
    if wrong:
        raise ValueError(
            "The checkpoint does not have the model that the config describes; of another shape, or in one of them "
            f"alone: {_group(wrong)}{_class_note(incompatible)}, {len(wrong)} tensors, the first {wrong[0]}. {remedy}"
        )


def load_for_evaluation(
    model: nn.Module, weights: str, output_dir: str = "", resume: bool = False, trust: bool = False
) -> None:
    """Loads the checkpoint ``weights``, or with ``resume`` the last one of ``output_dir``.

    ``trust``: whether a pickled one may run code.

    Raises:
        FileNotFoundError: if there is none to resume.
        ValueError: if none is named, or part of the model is not in it.
    """
    checkpointer = StrictCheckpointer(model, output_dir, trust=trust)
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
