"""A detector ready for inference, from any kind of config, with all of its weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import nn

from .. import model_zoo
from ..checkpoints import read_checkpoint
from ..checkpoints.classes import DetectorClasses
from ..checkpoints.loading import StrictCheckpointer
from ..config_reading import read_config
from ..data.mapper import DetectionMapper

logger = logging.getLogger(__name__)

#: The config of the small detector that comes with the package.
DEFAULT_CONFIG = "shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml"
_CLASS_BIAS = "class_logits.bias"
# Part of the addresses of detectron2's backbones, which trainings start from.
_BACKBONES = "ImageNetPretrained"


@dataclass(frozen=True)
class LoadedDetector:
    """A detector in evaluation mode, and what it needs to know of an image.

    Attributes:
        model: of detectron2's contract.
        augmentations: what an image goes through before the model, usually a resize.
        image_format: order of the channels that the model is given, RGB or BGR.
        classes: what it finds.
    """

    model: nn.Module
    augmentations: T.AugmentationList
    image_format: str
    classes: DetectorClasses


def load_detector(config: Any, weights: str | None, device: str | None, trust: bool) -> LoadedDetector:
    """Builds and loads a detector; see :class:`.Predictor` for the arguments.

    Raises:
        FileNotFoundError: there is no such config, or no such checkpoint.
        ValueError: no weights are given, or they are not those of the whole model.
    """
    cfg = resolve_config(config, weights)
    weights = str(weights or (cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.init_checkpoint))
    if not weights or _BACKBONES in weights:
        raise ValueError(
            "No weights are given, and the config names none, or those of a backbone: an untrained detector finds "
            "nothing. The README's model zoo says what can be had for which config."
        )
    if isinstance(cfg, CfgNode):
        model, mapper, datasets = _build_from_yaml(cfg, weights, device, trust)
    else:
        model = instantiate(cfg.model).to(device or _usable(cfg.train.device))
        mapper = instantiate(cfg.dataloader.test.mapper)
        datasets = [cfg.dataloader.test.dataset.name]
    if mapper.image_format not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT is {mapper.image_format}: predictions need RGB or BGR")
    rest = StrictCheckpointer(model, trust=trust).load(weights)
    classes = DetectorClasses.from_checkpoint(rest) or DetectorClasses.from_datasets(datasets)
    number = number_of_classes(model.state_dict())
    if classes is None or len(classes.names) != number:
        logger.warning(f"Nothing says what the {number} classes are called: they are given by their numbers")
        classes = DetectorClasses.numbered(number)
    return LoadedDetector(model.eval(), mapper.augmentations, mapper.image_format, classes)


def resolve_config(config: Any, weights: str | None) -> Any:
    """The config that is meant: itself, of a file, of the model zoo, beside the weights, or that of the package."""
    if isinstance(config, (str, Path)):
        return _read_config(str(config), weights)
    if config is not None:
        return config.clone() if isinstance(config, CfgNode) else config
    if weights is None:
        return model_zoo.get_config(DEFAULT_CONFIG, trained=True)
    beside = Path(weights).parent / "config.yaml"
    if not beside.is_file():
        raise FileNotFoundError(f"{weights} needs a config: there is none beside it ({beside}), so name one")
    return _read_config(str(beside), weights)


def _read_config(config: str, weights: str | None) -> Any:
    if not Path(config).is_file():
        has_own = weights is None and model_zoo.released(config) is not None
        try:
            return model_zoo.get_config(config, trained=has_own)
        except RuntimeError as error:
            raise FileNotFoundError(f"There is no file {config}, and {error}") from error
    return read_config(config)


def _build_from_yaml(
    cfg: CfgNode, weights: str, device: str | None, trust: bool
) -> tuple[nn.Module, DetectionMapper, Sequence[str]]:
    cfg.defrost()
    cfg.MODEL.DEVICE = device or _usable(cfg.MODEL.DEVICE)
    # Weights of a backbone are not looked for where the whole detector's come.
    cfg.MODEL.WEIGHTS = weights
    if cfg.MODEL.SparseRCNN.NUM_CLASSES == 0:
        local = PathManager.get_local_path(weights)
        cfg.MODEL.SparseRCNN.NUM_CLASSES = number_of_classes(read_checkpoint(local, trust=trust)["model"])
    return build_model(cfg), DetectionMapper(cfg, is_train=False), (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)


def number_of_classes(state_dict: dict[str, Any]) -> int:
    """The number of classes of a Sparse R-CNN, from its weights in our names or in mmdetection's.

    Raises:
        ValueError: they are of something else.
    """
    for name, value in state_dict.items():
        if name.endswith((_CLASS_BIAS, ".fc_cls.bias")):
            return len(value)
    raise ValueError("The checkpoint is not of a Sparse R-CNN: it has no class_logits")


def _usable(device: str) -> str:
    if device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(f"The config's device is {device}, but there is no CUDA device: using the CPU")
        return "cpu"
    return device
