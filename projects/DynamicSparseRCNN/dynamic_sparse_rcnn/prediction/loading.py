"""Detectors from any kind of config: ready for inference with all of their weights, or untrained."""

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
from omegaconf import OmegaConf
from torch import nn

from ..checkpoints import read_checkpoint
from ..checkpoints.classes import DetectorClasses, number_of_classes
from ..checkpoints.loading import StrictCheckpointer
from ..checkpoints.released import find_released
from ..checkpoints.runs import find_run
from ..config_reading import read_config
from ..data.mapper import DetectionMapper, Resize
from ..deploy.metadata import is_exported
from ..engine.from_lazy import dataset_names
from ..engine.parallel import usable_device
from ..engine.precision import autocast_dtype

logger = logging.getLogger(__name__)

#: The config of the small detector that comes with the package.
DEFAULT_CONFIG = "shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml"
# Part of the URLs of detectron2's backbones, which trainings start from.
_BACKBONES = "ImageNetPretrained"


@dataclass(frozen=True)
class LoadedDetector:
    """A detector in evaluation mode, and what it needs to know of an image.

    Attributes:
        model: of detectron2's contract.
        augmentations: what an image goes through before the model, usually a resize.
        image_format: order of the channels that the model is given, RGB or BGR.
        classes: what it finds.
        device: where it is run.
        autocast_dtype: what it is run in under autocast; None: without.
        resize: what images are resized to, before the model or in it; None: any size can be used.
        score_threshold: that of an exported file, otherwise 0.5.
    """

    model: nn.Module
    augmentations: T.AugmentationList
    image_format: str
    classes: DetectorClasses
    device: torch.device
    autocast_dtype: torch.dtype | None
    resize: Resize | None
    score_threshold: float = 0.5


def load_detector(
    config: Any,
    weights: str | None,
    device: str | None,
    trust: bool,
    class_names: Sequence[str] | None = None,
    precision: str | None = None,
) -> LoadedDetector:
    """Builds and loads a detector, or an exported file; see :class:`.Predictor` for the arguments.

    Raises:
        FileNotFoundError: there is no such config, or no such checkpoint.
        ValueError: no weights are given, they are not those of the whole model, or it has other classes.
    """
    if weights is None and is_trained(config):
        config, weights = None, str(config)
    if is_exported(weights or config):
        return _load_exported(str(weights or config), device, trust, class_names, precision)
    cfg, weights = _find(config, weights, trust)
    if not weights or _BACKBONES in weights:
        raise ValueError(
            "No weights are given, and the config names those of a backbone or none: the detector is untrained. "
            "docs/reference/checkpoints.md lists checkpoints that can be loaded."
        )
    if isinstance(cfg, CfgNode):
        model, mapper, datasets = _build_from_yaml(cfg, weights, device, trust)
    else:
        model = instantiate(cfg.model).to(
            device or usable_device(OmegaConf.select(cfg, "train.device", default="cuda"))
        )
        mapper = instantiate(cfg.dataloader.test.mapper)
        datasets = dataset_names(cfg.dataloader.test)
    if mapper.image_format not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT is {mapper.image_format}: predictions need RGB or BGR")
    rest = StrictCheckpointer(model, trust=trust).load(weights)
    classes = _name_classes(DetectorClasses.from_checkpoint(rest), datasets, number_of_classes(model.state_dict()))
    if class_names is not None:
        classes = _with_given_names(classes, class_names, DetectorClasses.from_checkpoint(rest))
    place = next(model.parameters()).device
    dtype = None if precision is None else autocast_dtype(precision, place, "precision")
    resize = Resize.of(mapper.augmentations.augs)
    return LoadedDetector(model.eval(), mapper.augmentations, mapper.image_format, classes, place, dtype, resize)


def build_untrained(
    config: str, options: Sequence[str] = (), num_classes: int = 80, *, trust: bool = True
) -> nn.Module:
    """The model of a config, with random weights, on the CPU.

    Args:
        config: a path, or a name in the model zoo.
        options: that change it, see :func:`.config_reading.read_config`.
        num_classes: where the config leaves them to the data.
        trust: see :func:`.config_reading.read_config`.
    """
    cfg = read_config(config, options, trust=trust)
    if not isinstance(cfg, CfgNode):
        model: nn.Module = instantiate(cfg.model)
        return model
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.CHECKPOINT = False, ""
    cfg.MODEL.SparseRCNN.NUM_CLASSES = cfg.MODEL.SparseRCNN.NUM_CLASSES or num_classes
    return build_model(cfg)


def _load_exported(
    path: str, device: str | None, trust: bool, class_names: Sequence[str] | None, precision: str | None
) -> LoadedDetector:
    from ..deploy.backends import ExportedDetector  # ONNX Runtime and OpenVINO are optional
    from ..deploy.inputs import make_augmentations

    model = ExportedDetector(path, device or "cpu", precision, trust).eval()
    classes = DetectorClasses(model.metadata.class_names, model.metadata.category_ids)
    if class_names is not None:
        classes = _with_given_names(classes, class_names, classes)
    resize = Resize.of(make_augmentations(model.metadata).augs)
    place, image_format, threshold = torch.device("cpu"), model.metadata.image_format, model.metadata.score_threshold
    return LoadedDetector(model, T.AugmentationList([]), image_format, classes, place, None, resize, threshold)


def is_trained(name: object) -> bool:
    """Whether this names a run, a checkpoint or an exported file rather than a config, by its suffix."""
    return isinstance(name, (str, Path)) and Path(name).suffix not in (".yaml", ".yml", ".py")


def _find(config: Any, weights: str | None, trust: bool) -> tuple[Any, str]:
    """The config that is meant, and the weights: those given, of a run, the released ones, or the config's own."""
    if config is None:
        run = find_run(weights or DEFAULT_CONFIG)
        return read_config(run.config_file, trust=trust), run.checkpoint
    if isinstance(config, (str, Path)):
        released, cfg = find_released(str(config)), read_config(str(config), trust=trust)
    else:
        released, cfg = None, config.clone() if isinstance(config, CfgNode) else config
    if weights is not None and Path(weights).is_dir():
        weights = find_run(weights).checkpoint
    if isinstance(cfg, CfgNode):
        named = cfg.MODEL.WEIGHTS
    else:
        named = OmegaConf.select(cfg, "train.init_checkpoint", default="")
    return cfg, str(weights or (released.url if released else named))


def _build_from_yaml(
    cfg: CfgNode, weights: str, device: str | None, trust: bool
) -> tuple[nn.Module, DetectionMapper, Sequence[str]]:
    cfg.defrost()
    cfg.MODEL.DEVICE = device or usable_device(cfg.MODEL.DEVICE)
    # Weights of a backbone are not looked for where the whole detector's come.
    cfg.MODEL.WEIGHTS = weights
    if cfg.MODEL.SparseRCNN.NUM_CLASSES == 0:
        local = PathManager.get_local_path(weights)
        cfg.MODEL.SparseRCNN.NUM_CLASSES = number_of_classes(read_checkpoint(local, trust=trust)["model"])
    return build_model(cfg), DetectionMapper(cfg, is_train=False), (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)


def _name_classes(known: DetectorClasses | None, datasets: Sequence[str], number: int) -> DetectorClasses:
    """What the checkpoint says, else the config's data sets."""
    classes = known or DetectorClasses.from_datasets(datasets)
    if classes is None or len(classes.names) != number:
        logger.warning(
            f"The checkpoint and the config do not name the {number} classes: they are called class 0, class 1, .."
        )
        return DetectorClasses.numbered_from_zero([f"class {index}" for index in range(number)])
    return classes


def _with_given_names(classes: DetectorClasses, names: Sequence[str], known: DetectorClasses | None) -> DetectorClasses:
    if len(names) != len(classes.names):
        raise ValueError(f"class_names has {len(names)} names, but the detector {len(classes.names)} classes")
    if known is not None and (difference := known.difference(names)):
        raise ValueError(f"class_names are for checkpoints that do not name their classes: {difference}")
    return DetectorClasses(tuple(names), classes.category_ids)
