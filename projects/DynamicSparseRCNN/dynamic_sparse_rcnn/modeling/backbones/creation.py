"""Creates a timm model from ``MODEL.TIMM``, with errors that name the key to change."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from detectron2.config import CfgNode
from torch import nn

from .weights import PretrainedWeights, check_fit, find_weights

# Arguments of timm.create_model.
Arguments = Mapping[str, object]


def create_timm_model(
    cfg: CfgNode, in_channels: int, optional: Sequence[Arguments] = ({},), **arguments: object
) -> nn.Module:
    """``timm.create_model`` for ``MODEL.TIMM.NAME``, with the weights that the config asks for.

    Args:
        cfg: the whole config.
        in_channels: channels of the images; timm adapts pretrained weights to them.
        optional: sets of arguments that not all architectures have; the first that the model takes is used.
        arguments: those that it must have.

    Raises:
        FileNotFoundError: there is no ``MODEL.TIMM.CHECKPOINT``.
        ValueError: the name, its tag or an argument is unknown to timm, or the checkpoint does not fit; names the key.
        RuntimeError: the pretrained weights are out of reach.
    """
    node = cfg.MODEL.TIMM
    check_name(node.NAME)
    weights = find_weights(cfg)
    # timm leaves out what is None.
    arguments = {"in_chans": in_channels, "drop_path_rate": node.DROP_PATH or None, **arguments, **weights.arguments()}
    try:
        model = _first_accepted(node.NAME, optional, arguments)
    except TypeError as error:
        if not node.DROP_PATH:
            raise
        raise ValueError(
            f"MODEL.TIMM.NAME {node.NAME} cannot be built with MODEL.TIMM.DROP_PATH {node.DROP_PATH} ({error}): set "
            "MODEL.TIMM.DROP_PATH 0"
        ) from error
    except (IndexError, AssertionError) as error:
        if arguments.get("out_indices") is None:
            raise
        raise ValueError(
            f"MODEL.TIMM.NAME {node.NAME} does not have the features MODEL.TIMM.OUT_INDICES {arguments['out_indices']}"
        ) from error
    except (OSError, RuntimeError) as error:
        if not weights.source:
            raise
        raise _loading_error(weights, node.NAME, error) from error
    check_fit(model, weights)
    _forget_weights(model)
    return model


def _first_accepted(name: str, optional: Sequence[Arguments], arguments: Arguments) -> Any:
    """The model with the first of the optional sets of arguments that is no ``TypeError``."""
    for extra in optional[:-1]:
        try:
            return timm.create_model(name, **extra, **arguments)
        except TypeError:
            continue
    return timm.create_model(name, **optional[-1], **arguments)


def _loading_error(weights: PretrainedWeights, name: str, error: Exception) -> Exception:
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    if weights.state_dict:
        return ValueError(f"{weights.source} does not fit MODEL.TIMM.NAME {name}: {' '.join(lines[:3])}")
    return RuntimeError(
        f"{weights.source} could not be loaded ({lines[0]}): give a local file (.safetensors or .pth) as "
        "MODEL.TIMM.CHECKPOINT, or set MODEL.TIMM.PRETRAINED False"
    )


def _forget_weights(model: nn.Module) -> None:
    """timm keeps the weights that it was given in the model's config, where they would be copied with the model."""
    for module in model.modules():
        config = getattr(module, "pretrained_cfg", None)
        if isinstance(config, dict):
            config.pop("state_dict", None)


def check_name(name: str) -> None:
    """Raises ``ValueError`` with the nearest names if timm does not know a name or its tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        raise ValueError(f"MODEL.TIMM.NAME {name!r} is unknown to timm {timm.__version__}: similar names are {near}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise ValueError(f"MODEL.TIMM.NAME {name!r}: timm {timm.__version__} has {tagged or 'no weights of it'}")
