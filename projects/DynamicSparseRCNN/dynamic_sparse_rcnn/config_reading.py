"""Finds and reads config files and the command line's changes to them, with one kind of error."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.utils.file_io import PathManager
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .config import add_dynamic_sparse_rcnn_config
from .errors import TRUST_REMEDY, first_line

_ABSENT = object()
_PYTHON_TAG = "tag:yaml.org,2002:python/"


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
    if "://" not in name:
        name = os.path.expanduser(name)
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


def read_config(file: str, options: Sequence[str] = (), *, trust: bool = True) -> Any:
    """The config of a file: a ``DictConfig`` of a lazy one, otherwise a ``CfgNode`` with all of this project's keys.

    Args:
        file: of the config, see :func:`find_config`.
        options: of the command line, which change it: ``key=value`` of a lazy one, otherwise keys and values in turn.
        trust: whether Python's tags in a yaml file, which can run code, are followed; those of a lazy one never are.

    A value that begins with ``~`` is a path below the home directory.

    Raises:
        FileNotFoundError: there is no such config.
        ConfigError: the file, or an option, cannot be read; names the key and, where there is one, the remedy.
    """
    file = find_config(file)
    if is_lazy_config(file):
        return _read_lazy_config(file, options)
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    remedy = "" if trust else f"; {TRUST_REMEDY}"
    with _explaining(cfg, f"{file} (or its _BASE_)", lambda: _leaves(CfgNode.load_yaml_with_base(file, trust)), remedy):
        cfg.merge_from_file(file, allow_unsafe=trust)
    merge_options(cfg, options)
    return cfg


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Changes a config by keys and values in turn, those of a command line.

    Raises:
        ConfigError: a key or a value cannot be used.
    """
    _check_options(options)
    with _explaining(cfg, "the command line", lambda: options[::2]):
        cfg.merge_from_list(list(options))
    _expand_home(cfg)


class ConfigError(ValueError):
    """What is wrong with a config, in one line."""


@contextmanager
def _explaining(
    cfg: CfgNode, source: str, given: Callable[[], Iterable[str]], remedy_of_tags: str = ""
) -> Iterator[None]:
    """One kind of error, whatever yacs and the yaml parser raise.

    Args:
        cfg: that keys are merged into.
        source: of the keys, for the message.
        given: gives the keys, if the source can be parsed.
        remedy_of_tags: what to do about one of Python's tags.
    """
    try:
        yield
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        message = str(error)
        keys = () if isinstance(error, yaml.YAMLError) else given()
        unknown = next((key for key in keys if not _is_known(cfg, key)), None)
        if unknown is not None:
            near = _near_key(unknown, _leaves(cfg))
            remedy = f"; is {near} meant?" if near else ""
            message = f"there is no key {unknown} in detectron2 or in this project{remedy}"
        elif _PYTHON_TAG in message:
            message += remedy_of_tags
        elif "DATASETS." in message:
            message += ". Data sets are a list, also if there is one: DATASETS.TRAIN \"('name',)\""
        # Parsers say the place in lines of their own; of a whole section, as yacs shows it, nobody wants more than one.
        lines = message.splitlines() if isinstance(error, yaml.YAMLError) else message.splitlines()[:1]
        raise ConfigError(f"{source}: {' '.join(line.strip() for line in lines)}") from error


def _near_key(key: str, keys: Iterable[str]) -> str | None:
    """The key that may be meant."""
    known = {other.lower(): other for other in keys}
    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.75)
    return known[near[0]] if near else None


def _is_known(cfg: CfgNode, key: str) -> bool:
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part, _ABSENT) if isinstance(node, CfgNode) else _ABSENT
    return node is not _ABSENT or cfg.key_is_deprecated(key) or cfg.key_is_renamed(key)


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys that have values, in full."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _check_options(options: Sequence[str]) -> None:
    misplaced = [key for key in options[::2] if str(key).startswith("--")]
    if misplaced:
        raise ConfigError(f"the command line: {misplaced[0]} follows KEY VALUE pairs: put options before them")
    if len(options) % 2:
        raise ConfigError(
            f"the command line: {options[-1]} has no value: KEY VALUE pairs are needed, such as SOLVER.MAX_ITER 1000"
        )


def _expand_home(node: Any) -> None:
    """Replaces ``~`` at the beginning of all values of a config, of either kind."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if OmegaConf.is_config(node) and (OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key)):
            continue
        value = node[key]
        if isinstance(value, str) and value.startswith("~"):
            node[key] = os.path.expanduser(value)
        elif isinstance(value, (CfgNode, DictConfig, ListConfig)):
            _expand_home(value)


def _read_lazy_config(file: str, options: Sequence[str]) -> Any:
    try:
        cfg = LazyConfig.load(file) if file.endswith(".py") else _load_lazy_yaml(file)
    except Exception as error:  # it is a program
        raise ConfigError(f"{file} cannot be read: {type(error).__name__}: {first_line(error)}") from error
    for option in options:
        try:
            (override,) = OverridesParser.create().parse_overrides([option])
        except HydraException as error:
            raise ConfigError(f"{option!r} is not of the form key=value: {first_line(error)}") from error
        if override.is_delete():
            raise ConfigError(f"{option!r}: keys cannot be deleted; set it to null")
        _override(cfg, override.key_or_group, override.value(), is_new=override.is_add())
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{file} with {list(options)}: {first_line(error)}") from error
    _expand_home(cfg)
    return cfg


def _load_lazy_yaml(file: str) -> Any:
    """As ``LazyConfig.load``, but Python's tags, which can run code, are errors: ``LazyConfig.save`` needs none."""
    with PathManager.open(file) as opened:
        return OmegaConf.create(yaml.safe_load(opened), flags={"allow_objects": True})


def _override(cfg: DictConfig, key: str, value: Any, is_new: bool) -> None:
    """Sets a key to a value of the kind that it has."""
    known = dict(_lazy_items(cfg))
    if key not in known and not is_new:
        near = _near_key(key, known)
        remedy = f"is {near} meant?" if near else "correct it"
        raise ConfigError(f"the config has no key {key}: {remedy} (+{key}=.. adds a new one)")
    old = known.get(key)
    if isinstance(old, str) and isinstance(value, (int, float)):
        value = str(value)
    elif _is_whole(old) and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e3
    elif value is not None and not _fits(old, value):
        raise ConfigError(f"{key} is {old!r}, so {key}={value!r} has the wrong type: give a value of the same type")
    try:
        OmegaConf.update(cfg, key, value, merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}={value!r} cannot be set: {first_line(error)}") from error


def _lazy_items(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys of a lazy config in full, those of sections too, and their values."""
    for key in range(len(node)) if isinstance(node, ListConfig) else node.keys():
        try:
            value = node[key]
        except OmegaConfBaseException:  # missing, or an interpolation of something missing
            value = None
        yield f"{prefix}{key}", value
        if OmegaConf.is_config(value):
            yield from _lazy_items(value, f"{prefix}{key}.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(old: Any, value: Any) -> bool:
    """Whether a value can take the place of another: numbers may become lists of them, and None anything."""
    if isinstance(old, bool):
        return isinstance(value, bool)
    if isinstance(old, (int, float)):
        return isinstance(value, (int, float, list)) and not isinstance(value, bool)
    return isinstance(value, dict) if isinstance(old, DictConfig) else True
