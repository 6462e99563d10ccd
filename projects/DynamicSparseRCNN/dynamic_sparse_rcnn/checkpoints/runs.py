"""What stands for a trained detector on a command line: a run's folder, a checkpoint, or a name in the model zoo."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from pathlib import Path

from .released import find_released

logger = logging.getLogger(__name__)

BEST, LAST, FINAL = "model_best.pth", "last_checkpoint", "model_final.pth"
# What would be taken for a new run's in its folder, which has neither checkpoint nor detections at first.
_SET_ASIDE = (BEST, FINAL, "inference")


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


def is_replaced(weights: str, folder: str) -> bool:
    """Whether a checkpoint is one of those that a new run in the folder sets aside."""
    path = Path(weights).resolve()
    return path.parent == Path(folder).resolve() and path.name in _SET_ASIDE


def set_earlier_run_aside(folder: str) -> None:
    """Moves what would be taken for a new run's to ``earlier_1/``, or the next free number, and the config with it."""
    place = Path(folder)
    (place / LAST).unlink(missing_ok=True)
    found = [name for name in _SET_ASIDE if (place / name).exists()]
    if not found:
        return
    earlier = next(path for i in itertools.count(1) if not (path := place / f"earlier_{i}").exists())
    earlier.mkdir()
    if (place / "config.yaml").exists():
        found.append("config.yaml")
    for name in found:
        (place / name).rename(earlier / name)
    logger.warning(f"{place} has an earlier run: moved its {', '.join(found)} to {earlier}")
