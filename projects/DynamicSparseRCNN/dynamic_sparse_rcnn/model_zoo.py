"""This project's configs and checkpoints, with the verbs of ``detectron2.model_zoo``.

>>> from dynamic_sparse_rcnn import model_zoo
>>> cfg = model_zoo.get_config("coco/dynamic_sparse_rcnn_R_50_FPN_300pro_3x.yaml")
>>> cfg.MODEL.META_ARCHITECTURE
'DynamicSparseRCNN'
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from torch import nn

from .checkpoints.loading import Checkpointer, StrictCheckpointer
from .checkpoints.released import find_released
from .config_reading import config_folder, list_configs, read_config

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "list_configs"]


def get_config_file(config_path: str) -> str:
    """The path of a config file.

    Args:
        config_path: relative to ``configs/``, such as ``coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml``.

    Raises:
        RuntimeError: there is none of that name (as in detectron2).
    """
    if config_path not in list_configs():
        raise RuntimeError(f"{config_path} is not in the model zoo; there are: {', '.join(list_configs())}")
    return str(config_folder() / config_path)


def get_checkpoint_url(config_path: str) -> str:
    """What ``MODEL.WEIGHTS`` has to be for the trained model of a config.

    Raises:
        RuntimeError: this project has not trained that model.
    """
    entry = find_released(config_path)
    if entry is None:
        raise RuntimeError(
            f"This project has no checkpoint for {config_path}: docs/reference/checkpoints.md lists those of other "
            "projects that it can load"
        )
    return entry.url


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
