"""Reads config files and the command line's changes to them, with one kind of error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.utils.file_io import PathManager

from .config import add_dynamic_sparse_rcnn_config


def is_lazy_config(file: str) -> bool:
    """Whether a file is a lazy config: a ``.py``, or the ``config.yaml`` that the run of one leaves."""
    if file.endswith(".py"):
        return True
    with PathManager.open(file) as opened:
        return re.search("^model:", opened.read(), re.MULTILINE) is not None


def read_config(file: str, options: Sequence[str] = ()) -> Any:
    """The config of a file: a ``DictConfig`` of a lazy one, otherwise a ``CfgNode`` with all of this project's keys.

    Args:
        file: of the config.
        options: of the command line, which change it: ``key=value`` of a lazy one, otherwise keys and values in turn.

    Raises:
        SystemExit: if no file is named.
        FileNotFoundError: if there is no such file.
        ConfigError: if a yaml file, or an option, cannot be read; names the key and, where there is one, the remedy.
    """
    if not file:
        raise SystemExit("error: --config-file is needed: see configs/")
    if "://" not in file and not PathManager.isfile(file):
        raise FileNotFoundError(f"There is no config file {file}: configs/ has those of this project")
    if is_lazy_config(file):
        return LazyConfig.apply_overrides(LazyConfig.load(file), list(options))
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    with _explaining(cfg, f"{file} (or its _BASE_)"):
        cfg.merge_from_file(file)
    with _explaining(cfg, "the command line"):
        _check_options(options)
        cfg.merge_from_list(list(options))
    return cfg


class ConfigError(ValueError):
    """What is wrong with a config, in one line."""


@contextmanager
def _explaining(cfg: CfgNode, source: str) -> Iterator[None]:
    """One kind of error, whatever yacs and the yaml parser raise."""
    try:
        yield
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        message = str(error)
        unknown = re.search(r"Non-existent (?:config )?key: ([^'\s]+)", message)
        if unknown is not None:
            known = {key.lower(): key for key in _leaves(cfg)}
            near = difflib.get_close_matches(unknown[1].lower(), known, n=1, cutoff=0.75)
            remedy = f"; is {known[near[0]]} meant?" if near else ""
            message = f"there is no key {unknown[1]} in detectron2 or in this project{remedy}"
        elif "DATASETS." in message:
            message += ". Data sets are a list, also if there is one: DATASETS.TRAIN \"('name',)\""
        # Parsers say the place in lines of their own; of a whole section, as yacs shows it, nobody wants more than one.
        lines = message.splitlines() if isinstance(error, yaml.YAMLError) else message.splitlines()[:1]
        raise ConfigError(f"{source}: {' '.join(line.strip() for line in lines)}") from error


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """The keys that have values, in full."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _check_options(options: Sequence[str]) -> None:
    misplaced = [key for key in options[::2] if str(key).startswith("--")]
    if misplaced:
        raise ValueError(f"{misplaced[0]} stands behind keys and values: put all that begins with -- before them")
    if len(options) % 2:
        raise ValueError(f"keys and values in turn are needed (SOLVER.MAX_ITER 1000), and {options[-1]} has no value")
