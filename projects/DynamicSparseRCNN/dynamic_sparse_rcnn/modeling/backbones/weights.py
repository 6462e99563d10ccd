"""Pre-trained weights of timm models: from its hub, or from a local file."""

from __future__ import annotations

import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ...checkpoints.files import read_checkpoint

logger = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 5
# Modules that timm's feature extractors put around a model.
_WRAPPERS = ("model_", "body_")


@dataclass(frozen=True)
class LoadReport:
    """What became of a state dict: names of the parameters and buffers that fitted, were left over, were missing."""

    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    added: tuple[str, ...]


def wanted_weights(cfg: CfgNode) -> str:
    """Where the backbone's weights come from: ``checkpoint``, ``hub`` or ``nowhere``.

    ``MODEL.WEIGHTS`` holds a whole detector, and with it the backbone: then nothing else is loaded.

    Raises:
        ValueError: ``MODEL.WEIGHTS`` is one of detectron2's ResNets.
    """
    node, weights = cfg.MODEL.TIMM, cfg.MODEL.WEIGHTS
    if "ImageNetPretrained" in weights:
        raise ValueError(
            f"MODEL.WEIGHTS {weights} belongs to detectron2's own ResNets: with a backbone of timm set "
            "MODEL.WEIGHTS '' and MODEL.TIMM.PRETRAINED True"
        )
    if not (node.PRETRAINED or node.CHECKPOINT):
        return "nowhere"
    if weights:
        logger.info(
            f"MODEL.WEIGHTS {weights} gives the backbone's weights too: MODEL.TIMM.PRETRAINED and "
            "MODEL.TIMM.CHECKPOINT are not read"
        )
        return "nowhere"
    return "checkpoint" if node.CHECKPOINT else "hub"


def hub_arguments(name: str) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that load pre-trained weights, from the cache where it has them.

    Raises:
        RuntimeError: the weights are neither in the cache nor to be reached, or there are none.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise RuntimeError(
            f"timm has no pre-trained weights for MODEL.TIMM.NAME {name}: "
            f"{'use one of ' + ', '.join(tags) if tags else 'set MODEL.TIMM.PRETRAINED False'}"
        )
    if config.hf_hub_id:
        cached = _cached_on_hub(config)
        if cached is not None:
            # As a file: asking the hub whether it is still current takes minutes without a network.
            return {"pretrained": True, "pretrained_cfg_overlay": {"file": cached}}
        _check_reachable(name, os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    elif not (Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name).is_file():
        _check_reachable(name, config.url)
    return {"pretrained": True}


def _cached_on_hub(config: Any) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = config.hf_hub_id.partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        path = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(path, str):
            return path
    return None


def _check_reachable(name: str, url: str) -> None:
    """The hub's own client retries for about a minute, or hangs where packets are dropped: one short look first."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError:
        return  # a server answered
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # a server answered, whose certificate the hub's client may trust
        raise RuntimeError(
            f"the pre-trained weights of MODEL.TIMM.NAME {name} are not in the local cache and {url} does not answer "
            f"({reason}): give a local file (.safetensors or .pth) as MODEL.TIMM.CHECKPOINT, or set "
            "MODEL.TIMM.PRETRAINED False, as for a run that is resumed"
        ) from None


def read_state_dict(path: str) -> dict[str, Tensor]:
    """The weights in a file that :func:`read_checkpoint` reads, without the ``module.`` of distributed training.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it cannot be read, or holds no weights.
    """
    try:
        content = read_checkpoint(path)["model"]
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"MODEL.TIMM.CHECKPOINT: {error}") from error
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"MODEL.TIMM.CHECKPOINT {path} holds no weights, neither at its top nor under 'model'")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copies a timm state dict into a model or feature extractor of timm, and logs what did not fit by its name.

    Feature extractors name some modules ``stages_0`` that the models call ``stages.0``: both are found.

    Raises:
        ValueError: no name fits, or the shape of a parameter differs; names what and where.
    """
    ours = model.state_dict()
    by_plain_name = {_plain(name): name for name in ours}
    renamed = {by_plain_name[_plain(name)]: name for name in state_dict if _plain(name) in by_plain_name}
    if not renamed:
        raise ValueError(
            f"{source}: none of its {len(state_dict)} names, such as {next(iter(state_dict))}, is one of the model's, "
            f"such as {next(iter(ours))}: is it of another model, or not in timm's layout?"
        )
    wrong = [name for name in renamed if ours[name].shape != state_dict[renamed[name]].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{source}: {len(wrong)} shapes differ from the model's, the first {renamed[name]}: "
            f"{tuple(state_dict[renamed[name]].shape)} instead of {tuple(ours[name].shape)}. Is it of another model?"
        )
    model.load_state_dict({name: state_dict[old] for name, old in renamed.items()}, strict=False)
    taken = set(renamed.values())
    report = LoadReport(
        loaded=tuple(renamed),
        dropped=tuple(name for name in state_dict if name not in taken),
        added=tuple(name for name in ours if name not in renamed),
    )
    _log(report, source)
    return report


def _plain(name: str) -> str:
    plain = name.replace(".", "_")
    for wrapper in _WRAPPERS:
        plain = plain.removeprefix(wrapper)
    return plain


def _log(report: LoadReport, source: str) -> None:
    logger.info(f"{source}: {len(report.loaded)} parameters and buffers loaded")
    if report.dropped:
        logger.warning(f"{source}: {len(report.dropped)} dropped, the model has no such: {', '.join(report.dropped)}")
    if report.added:
        logger.warning(
            f"{source}: {len(report.added)} of the model are not in it and start afresh: {', '.join(report.added)}"
        )
