"""This project's configs and checkpoints, with the verbs of ``detectron2.model_zoo``.

>>> from dynamic_sparse_rcnn import model_zoo
>>> cfg = model_zoo.get_config("coco/dynamic_sparse_rcnn_R_50_FPN_300pro_3x.yaml")
>>> cfg.MODEL.META_ARCHITECTURE
'DynamicSparseRCNN'
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from torch import nn

from .checkpoints.loading import Checkpointer, StrictCheckpointer
from .checkpoints.released import ReleasedCheckpoint, released_checkpoints
from .config_reading import read_config

__all__ = ["ELSEWHERE", "get", "get_checkpoint_url", "get_config", "get_config_file", "list_configs"]


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A checkpoint of another project that one of our configs can load, as it is, by its file as ``MODEL.WEIGHTS``.

    Attributes:
        config: ours, relative to ``configs/``.
        project: where it can be had, a repository on GitHub.
        name: the file, or what the project's table of models calls it.
        box_ap: on COCO val, as the project states it.
    """

    config: str
    project: str
    name: str
    box_ap: float


_PUBLIC = "PeizeSun/SparseR-CNN"
_MMDETECTION = "open-mmlab/mmdetection"
#: What can be had elsewhere, until there are checkpoints of our own trained on COCO.
ELSEWHERE: tuple[ForeignCheckpoint, ...] = (
    ForeignCheckpoint("coco/sparse_rcnn_R_50_FPN_100pro_3x.yaml", _PUBLIC, "R50_100pro_3x", 42.8),
    ForeignCheckpoint("coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml", _PUBLIC, "R50_300pro_3x", 45.0),
    ForeignCheckpoint("coco/sparse_rcnn_R_101_FPN_100pro_3x.yaml", _PUBLIC, "R101_100pro_3x", 44.1),
    ForeignCheckpoint("coco/sparse_rcnn_R_101_FPN_300pro_3x.yaml", _PUBLIC, "R101_300pro_3x", 46.4),
    ForeignCheckpoint(
        "coco/sparse_rcnn_R_50_FPN_100pro_3x.yaml",
        _MMDETECTION,
        "sparse_rcnn_r50_fpn_mstrain_480-800_3x_coco_20201218_154234-7bc5c054.pth",
        42.8,
    ),
    ForeignCheckpoint(
        "coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml",
        _MMDETECTION,
        "sparse_rcnn_r50_fpn_300_proposals_crop_mstrain_480-800_3x_coco_20201223_024605-9fe92701.pth",
        45.0,
    ),
    ForeignCheckpoint(
        "coco/sparse_rcnn_R_101_FPN_100pro_3x.yaml",
        _MMDETECTION,
        "sparse_rcnn_r101_fpn_mstrain_480-800_3x_coco_20201223_121552-6c46c9d6.pth",
        44.2,
    ),
    ForeignCheckpoint(
        "coco/sparse_rcnn_R_101_FPN_300pro_3x.yaml",
        _MMDETECTION,
        "sparse_rcnn_r101_fpn_300_proposals_crop_mstrain_480-800_3x_coco_20201223_023452-c23c3564.pth",
        46.2,
    ),
)


def _config_folder() -> Path:
    """Installed they are a package of data; in a checkout, a folder at its top."""
    name = f"{__package__}.configs"
    if importlib.util.find_spec(name) is not None:
        module = importlib.import_module(name)
        assert module.__file__ is not None
        return Path(module.__file__).parent
    return Path(__file__).resolve().parents[3] / "configs"


def list_configs() -> list[str]:
    """The names of all configs."""
    folder = _config_folder()
    files = [file.relative_to(folder).as_posix() for file in (*folder.glob("*/*.yaml"), *folder.glob("lazy/*.py"))]
    return sorted(file for file in files if not file.endswith(("__init__.py", "common.py")))


def get_config_file(config_path: str) -> str:
    """The path of a config file.

    Args:
        config_path: relative to ``configs/``, such as ``coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml``.

    Raises:
        RuntimeError: there is none of that name (as in detectron2).
    """
    folder = _config_folder()
    file = folder / config_path
    inside = file.resolve().is_relative_to(folder.resolve())
    if not (inside and config_path.endswith((".yaml", ".py")) and file.is_file()):
        raise RuntimeError(f"{config_path} is not in the model zoo; there are: {', '.join(list_configs())}")
    return str(file)


def released(config_path: str) -> ReleasedCheckpoint | None:
    """The line of our table of checkpoints for a config; None where there is none."""
    return next((entry for entry in released_checkpoints() if entry.config == config_path), None)


def get_checkpoint_url(config_path: str) -> str:
    """What ``MODEL.WEIGHTS`` has to be for the trained model of a config.

    Raises:
        RuntimeError: we have trained none; says what other projects have.
    """
    entry = released(config_path)
    if entry is not None:
        return entry.url
    others = [f"{x.name} of https://github.com/{x.project}" for x in ELSEWHERE if x.config == config_path]
    remedy = f" It can load {', or '.join(others)}, downloaded and named as MODEL.WEIGHTS." if others else ""
    raise RuntimeError(f"There is no checkpoint of ours for {config_path}.{remedy}")


def get_config(config_path: str, trained: bool = False) -> Any:
    """A config: a ``CfgNode`` of a ``.yaml``, a ``DictConfig`` of a ``.py``.

    Args:
        config_path: relative to ``configs/``.
        trained: whether it names our trained checkpoint as its weights, instead of what it starts a training with.

    Raises:
        RuntimeError: there is no such config, or no such checkpoint.
    """
    cfg = read_config(get_config_file(config_path))
    if trained and isinstance(cfg, CfgNode):
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    elif trained:
        cfg.train.init_checkpoint = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model, in training mode, with our trained weights or those that it starts a training with.

    Args:
        config_path: relative to ``configs/``.
        trained: see :func:`get_config`.
        device: of the model; by default the config's, or the CPU where there is no GPU.

    Raises:
        RuntimeError: there is no such config, or no such checkpoint.
        ValueError: our checkpoint is not of the whole model.
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if isinstance(cfg, CfgNode):
        if device is not None:
            cfg.MODEL.DEVICE = device
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        model, weights = instantiate(cfg.model), cfg.train.init_checkpoint
        model.to(device or cfg.train.device)
    (StrictCheckpointer if trained else Checkpointer)(model).load(weights)
    return model
