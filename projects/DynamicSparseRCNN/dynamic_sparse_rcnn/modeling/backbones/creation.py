"""Creates a timm model from ``MODEL.TIMM``, with errors that name the key to change."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import timm
from detectron2.config import CfgNode

from .weights import hub_arguments

logger = logging.getLogger(__name__)


def create_timm_model(
    cfg: CfgNode, in_channels: int, from_hub: bool, optional: Sequence[dict[str, Any]] = ({},), **arguments: Any
) -> Any:
    """``timm.create_model`` for ``MODEL.TIMM.NAME``, with random weights or those of timm's hub.

    Args:
        cfg: the whole config.
        in_channels: channels of the images; those of pre-trained weights are adapted by timm.
        from_hub: whether the hub's weights are loaded.
        optional: sets of arguments that not all architectures have; the first that the model takes is used.
        arguments: those that it must have.

    Raises:
        ValueError: the name, its tag or an argument is unknown to timm; names the key.
        RuntimeError: the pre-trained weights are out of reach.
    """
    name = cfg.MODEL.TIMM.NAME
    check_name(name)
    arguments |= {"in_chans": in_channels} | (hub_arguments(name) if from_hub else {"pretrained": False})
    if cfg.MODEL.TIMM.DROP_PATH:
        arguments["drop_path_rate"] = cfg.MODEL.TIMM.DROP_PATH
    try:
        with _loading_reported(name):
            return _first_accepted(name, optional, arguments)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise ValueError(f"MODEL.TIMM.NAME {name} has no drop path: set MODEL.TIMM.DROP_PATH 0") from error
        raise
    except (IndexError, AssertionError) as error:
        if arguments.get("out_indices") is None:
            raise
        raise ValueError(
            f"MODEL.TIMM.NAME {name} does not have the features MODEL.TIMM.OUT_INDICES {arguments['out_indices']}"
        ) from error
    except OSError as error:  # the hub's errors are such, too
        if not from_hub:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"the pre-trained weights of MODEL.TIMM.NAME {name} could not be loaded ({reason}): give a local file "
            "(.safetensors or .pth) as MODEL.TIMM.CHECKPOINT, or set MODEL.TIMM.PRETRAINED False"
        ) from error


def _first_accepted(name: str, optional: Sequence[dict[str, Any]], arguments: dict[str, Any]) -> Any:
    for extra in optional[:-1]:
        try:
            return timm.create_model(name, **extra, **arguments)
        except TypeError as error:
            if not any(key in str(error) for key in extra):
                raise
    return timm.create_model(name, **optional[-1], **arguments)


@contextmanager
def _loading_reported(name: str) -> Iterator[None]:
    """Passes on which keys timm drops and adds when it loads weights, the classifier's among them."""

    class Reporter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "keys (" in record.getMessage():
                logger.log(record.levelno, f"MODEL.TIMM.NAME {name}: {record.getMessage()}")

    loader, reporter = logging.getLogger("timm.models._builder"), Reporter()
    level, propagates = loader.level, loader.propagate
    loader.setLevel(logging.INFO)
    loader.propagate = False
    loader.addHandler(reporter)
    try:
        yield
    finally:
        loader.removeHandler(reporter)
        loader.setLevel(level)
        loader.propagate = propagates


def check_name(name: str) -> None:
    """Raises ``ValueError`` with the nearest names if timm does not know a name or its tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        raise ValueError(f"MODEL.TIMM.NAME {name!r} is unknown to timm {timm.__version__}; near are {near}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise ValueError(f"MODEL.TIMM.NAME {name!r}: timm {timm.__version__} has {tagged or 'no tags of it'}")
