"""Finds and reads config files and the command line's changes to them, with one kind of error."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.utils.file_io import PathManager

from .config import add_dynamic_sparse_rcnn_config


def config_folder() -> Path:
    """The folder of this project's configs: installed a package of data, in a checkout ``configs/`` at its top."""
    name = f"{__package__}.configs"
    if importlib.util.find_spec(name) is not None:
        module = importlib.import_module(name)
        assert module.__file__ is not None
        return Path(module.__file__).parent
    return Path(__file__).resolve().parents[3] / "configs"


def list_configs() -> list[str]:
    """The names of all configs, relative to ``configs/``."""
    folder = config_folder()
    files = [file.relative_to(folder).as_posix() for file in (*folder.glob("*/*.yaml"), *folder.glob("lazy/*.py"))]
    return sorted(file for file in files if not file.endswith(("__init__.py", "common.py")))


def find_config(name: str) -> str:
    """The file of a config.

    Args:
        name: a path, a URL, or a name in the model zoo such as ``coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml``.

    Raises:
        FileNotFoundError: there is no such file, and no config of that name in the model zoo.
    """
    if "://" in name or PathManager.isfile(name):
        return name
    names = list_configs()
    if name in names:
        return str(config_folder() / name)
    raise FileNotFoundError(f"There is no config file {name}; the model zoo has: {', '.join(names)}")


def is_lazy_config(name: str) -> bool:
    """Whether a config is lazy: a ``.py``, or the ``config.yaml`` that the run of one leaves.

    Args:
        name: see :func:`find_config`.

    Raises:
        FileNotFoundError: there is no such config.
    """
    file = find_config(name)
    if file.endswith(".py"):
        return True
    with PathManager.open(file) as opened:
        return re.search("^model:", opened.read(), re.MULTILINE) is not None


def read_config(file: str, options: Sequence[str] = ()) -> Any:
    """The config of a file: a ``DictConfig`` of a lazy one, otherwise a ``CfgNode`` with all of this project's keys.

    Args:
        file: of the config, see :func:`find_config`.
        options: of the command line, which change it: ``key=value`` of a lazy one, otherwise keys and values in turn.

    Raises:
        FileNotFoundError: if there is no such config.
        ConfigError: if a yaml file, or an option, cannot be read; names the key and, where there is one, the remedy.
    """
    file = find_config(file)
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
        raise ValueError(f"{misplaced[0]} follows KEY VALUE pairs: put options before them")
    if len(options) % 2:
        raise ValueError(f"{options[-1]} has no value: KEY VALUE pairs are needed, such as SOLVER.MAX_ITER 1000")
