"""What stands for a trained detector on a command line: a run's folder, a checkpoint, or a name in the model zoo."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import describe
from .released import find_released

logger = logging.getLogger(__name__)

BEST, LAST, FINAL = "model_best.pth", "last_checkpoint", "model_final.pth"
# Folders with the detections of the last evaluation of a training, and of the best one.
LAST_DETECTIONS, BEST_DETECTIONS = "inference", "inference_best"
_CHECKPOINT = re.compile(r"model_(best|final|\d+)\.pth")


@dataclass(frozen=True)
class Run:
    """A trained detector.

    Attributes:
        config_file: its config, a path or a name in the model zoo.
        checkpoint: its weights, as ``MODEL.WEIGHTS`` names them.
    """

    config_file: str
    checkpoint: str


def find_run(name: str | Path, config_file: str | None = None) -> Run:
    """The config and the checkpoint that a name stands for.

    Args:
        name: the folder of a run, which stands for its best checkpoint, or its last where there is no best one; a
            checkpoint, a path or a URL; or a config of the model zoo that has a released checkpoint.
        config_file: in place of the ``config.yaml`` beside the checkpoint.

    Raises:
        FileNotFoundError: there is no such run or checkpoint, or no config beside it.
    """
    checkpoint = find_checkpoint(name)
    released = find_released(checkpoint)
    if config_file is None and released is not None:
        config_file = released.config
    elif config_file is None:
        beside = Path(checkpoint).parent / "config.yaml"
        if not beside.is_file():
            raise FileNotFoundError(f"{checkpoint} needs a config, and there is no {beside}: name one (--config-file)")
        config_file = str(beside)
    return Run(config_file, checkpoint)


def find_checkpoint(name: str | Path) -> str:
    """The checkpoint that a name stands for, see :func:`find_run`.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
    """
    name = str(name)
    released = find_released(name)
    if released is not None:
        return released.url
    path = Path(name).expanduser()
    if "://" in name or path.is_file():
        return name if "://" in name else str(path)
    if path.is_dir():
        return str(_checkpoint_of(path))
    raise FileNotFoundError(f"{name} is neither the folder of a run, nor a checkpoint, nor a released model")


def _checkpoint_of(folder: Path) -> Path:
    if (folder / BEST).is_file():
        return folder / BEST
    if (folder / LAST).is_file():
        last = folder / (folder / LAST).read_text().strip()
        if not last.is_file():
            raise FileNotFoundError(f"{folder / LAST} names {last.name}, which is not in {folder}: name a checkpoint")
        return last
    if (folder / FINAL).is_file():
        return folder / FINAL
    raise FileNotFoundError(
        f"{folder} has no checkpoint ({BEST}, {LAST} or {FINAL}). Name one, or wait until its run saves one"
    )


def keep_best_detections(folder: str) -> None:
    """Copies the detections of the last evaluation, which are the best ones so far, for the report.

    No training fails because of its report: what cannot be copied is warned of.
    """
    last, best = Path(folder) / LAST_DETECTIONS, Path(folder) / BEST_DETECTIONS
    partial = best.with_suffix(".partial")
    shutil.rmtree(best, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)
    if not last.is_dir():
        return
    try:
        # Metrics by stage are of an earlier checkpoint, and a report reads no tensors.
        shutil.copytree(last, partial, ignore=shutil.ignore_patterns("stages.json", "*.pth"))
        partial.rename(best)
    except OSError as error:
        logger.warning(f"The report will have the last detections, not the best ones: {describe(error)}")


def is_set_aside(weights: str, folder: str) -> bool:
    """Whether a checkpoint is one of those that a new run in the folder sets aside."""
    path = Path(weights).resolve()
    return path.parent == Path(folder).resolve() and bool(_CHECKPOINT.fullmatch(path.name))


def set_earlier_run_aside(folder: str) -> None:
    """Moves checkpoints, evaluations, report and config of an earlier run to ``earlier_1``, or the next free number.

    A new run is then not taken for the earlier one, which stays a run of its own.
    """
    place = Path(folder)
    detections = (LAST_DETECTIONS, BEST_DETECTIONS)
    found = [path for path in sorted(place.iterdir()) if _CHECKPOINT.fullmatch(path.name) or path.name in detections]
    if not found:
        return
    found += [path for name in (LAST, "config.yaml", "report.html") if (path := place / name).exists()]
    if (place / "eval" / LAST_DETECTIONS).is_dir():  # of dsrcnn eval; without it, the folder may hold data
        found.append(place / "eval")
    earlier = next(path for i in itertools.count(1) if not (path := place / f"earlier_{i}").exists())
    earlier.mkdir()
    for path in found:
        path.rename(earlier / path.name)
    logger.warning(f"{place} has an earlier run: moved {', '.join(path.name for path in found)} to {earlier.name}")
