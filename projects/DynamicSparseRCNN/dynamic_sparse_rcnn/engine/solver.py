"""Optimizer and schedule: what Sparse R-CNN needs beyond detectron2's own."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from omegaconf import DictConfig
from torch import nn

logger = logging.getLogger(__name__)

_POSITIONS = ("pos_embed", "absolute_pos_embed", "relative_position_bias_table", "rel_pos_h", "rel_pos_w")
_TOKENS = ("cls_token", "reg_token", "dist_token")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD with the configured gradient clipping; backbone, router and initial boxes have rates of their own.

    All parameters have ``SOLVER.WEIGHT_DECAY``, as published, but those of ``SOLVER.NO_WEIGHT_DECAY``:
    ``WEIGHT_DECAY_NORM``, ``WEIGHT_DECAY_BIAS``, ``BIAS_LR_FACTOR`` and ``NESTEROV`` are not read.
    ``SOLVER.LAYER_DECAY`` is for backbones with ``layer_decay_scales``, as plain vision transformers.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model`` clips the norm of all gradients together, which
    detectron2 leaves to projects; its other types are detectron2's.
    """
    groups = _parameter_groups(cfg, model)
    if cfg.SOLVER.OPTIMIZER == "ADAMW":
        # Fused on the CPU alone: on CUDA a gradient scaler hands a fused step gradients not yet unscaled,
        # which clipping would see.
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, cfg.SOLVER.BASE_LR, fused=True if on_cpu else None)
    elif cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}: use ADAMW or SGD")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        clip_full_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
        return optimizer
    return maybe_add_gradient_clipping(cfg, optimizer)


def _parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """One group for each learning rate and weight decay; the backbone's after all others."""
    scales = _layer_scales(cfg.SOLVER.LAYER_DECAY, model)
    exempt = _without_weight_decay(cfg.SOLVER.NO_WEIGHT_DECAY, model)
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_backbone = "backbone" in name.split(".")
        if in_backbone:  # which may have routers of its own
            factor = cfg.SOLVER.BACKBONE_MULTIPLIER * scales.get(name, 1.0)
        else:
            factor = _factor_outside_backbone(cfg, name)
        rate = cfg.SOLVER.BASE_LR * factor
        decay = 0.0 if name in exempt else cfg.SOLVER.WEIGHT_DECAY
        groups.setdefault((in_backbone, rate, decay), []).append(parameter)
    return [
        {"params": groups[key], "lr": key[1], "weight_decay": key[2]}
        for key in sorted(groups, key=lambda key: (key[0], -key[1], -key[2]))
    ]


def _factor_outside_backbone(cfg: CfgNode, name: str) -> float:
    """The factor of the learning rate of a parameter of the proposal generator or the head, by its name."""
    if "router" in name.split("."):
        return cfg.SOLVER.ROUTER_MULTIPLIER
    return cfg.SOLVER.INIT_BOXES_MULTIPLIER if name.endswith("_proposal_boxes.weight") else 1.0


def _layer_scales(decay: float, model: nn.Module) -> dict[str, float]:
    """Factors of the learning rate by parameter name; empty without decay."""
    if decay == 1:
        return {}
    backbone = getattr(model, "backbone", None)
    if backbone is None or not hasattr(backbone, "layer_decay_scales"):
        raise ValueError(
            f"SOLVER.LAYER_DECAY is {decay}, but the backbone {type(backbone).__name__} has no layers to decay "
            "over: set it to 1, or use MODEL.BACKBONE.NAME build_vit_sfp_backbone"
        )
    return {f"backbone.{name}": scale for name, scale in backbone.layer_decay_scales(decay).items()}


def _without_weight_decay(kinds: Sequence[str], model: nn.Module) -> set[str]:
    """Names of the parameters of some kinds: ``norm``, ``bias``, ``pos_embed``."""
    unknown = set(kinds) - {"norm", "bias", "pos_embed"}
    if unknown:
        raise ValueError(f"SOLVER.NO_WEIGHT_DECAY has {sorted(unknown)}: use any of norm, bias, pos_embed")
    exempt = set()
    for prefix, module in model.named_modules():
        # Norms by the names of their classes: torch's, detectron2's and timm's have no other thing in common.
        is_norm = "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False):
            if (
                ("norm" in kinds and is_norm)
                or ("bias" in kinds and name.endswith("bias"))
                or ("pos_embed" in kinds and name in (*_POSITIONS, *_TOKENS))
            ):
                exempt.add(f"{prefix}.{name}" if prefix else name)
    return exempt


def clip_full_model(optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float) -> None:
    """Makes every step of ``optimizer`` clip the norm of all gradients together first."""

    def clip(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        parameters = itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    # Before the step, not before the backward pass ends: a gradient scaler has unscaled by then.
    optimizer.register_step_pre_hook(clip)


@dataclass(frozen=True, kw_only=True)
class ScheduleKeys:
    """Where a kind of config says what depends on the size of the batch, as dotted keys.

    Attributes:
        batch: number of images of a batch.
        reference: number of images that the others are written for; 0: they are never scaled.
        rate: the learning rate.
        length: number of iterations.
        counts: other numbers of iterations; those that a config does not have are left alone.
        steps: tuples of iterations.
    """

    batch: str
    reference: str
    rate: str
    length: str
    counts: tuple[str, ...]
    steps: tuple[str, ...] = ()


def scale_to_batch_size(cfg: CfgNode | DictConfig, keys: ScheduleKeys) -> None:
    """Scales learning rate, warm-up, steps, length, periods and annealing from the reference batch to the batch in use.

    The linear rule: half the batch has half the learning rate and twice the iterations. The reference becomes the
    batch in use, so that a saved config is not scaled again.

    Args:
        cfg: of either kind; not frozen.
        keys: where it says all that.

    Raises:
        ValueError: there is a reference, but no batch or no learning rate that could be scaled.
    """
    reference, batch = _get(cfg, keys.reference) or 0, _get(cfg, keys.batch)
    if reference in (0, batch):
        return
    rate, length = _get(cfg, keys.rate), _get(cfg, keys.length)
    if not isinstance(batch, int) or batch < 1 or rate is None:
        raise ValueError(
            f"{keys.batch} is {batch} and {keys.rate} is {rate}: the schedule cannot be scaled from the reference "
            f"batch {reference} ({keys.reference} 0 keeps it as written)"
        )
    factor = reference / batch
    _set(cfg, keys.rate, rate / factor)
    for key in keys.steps:
        _set(cfg, key, tuple(round(step * factor) for step in _get(cfg, key)))
    for key in (keys.length, *keys.counts):
        count = _get(cfg, key)
        # Not to 0, which means "never" or fails where a period is meant.
        if count and count > 0:
            _set(cfg, key, max(1, round(count * factor)))
    _set(cfg, keys.reference, batch)
    logger.info(
        f"Batch {batch} instead of the reference {reference}: learning rate {rate:g} -> {_get(cfg, keys.rate):g}, "
        f"iterations {length} -> {_get(cfg, keys.length)}, warm-up, steps and periods likewise "
        f"({keys.reference} 0 keeps them as written)"
    )


def _get(cfg: Any, key: str) -> Any:
    """The value of a dotted key; None if there is none."""
    for name in key.split("."):
        if name not in cfg:
            return None
        cfg = cfg[name]
    return cfg


def _set(cfg: Any, key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    _get(cfg, section)[name] = value


@contextmanager
def keeping_rates(optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler) -> Iterator[None]:
    """Restores the config's learning rates and weight decays after a checkpoint has been loaded within.

    The current learning rates become those of the checkpoint, scaled by the ratio of the base rates. Schedulers without
    base rates, which are made of others, keep theirs.
    """
    decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
    base_lrs = getattr(scheduler, "base_lrs", None)
    yield
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    if base_lrs is None:
        return
    for group, new, old in zip(optimizer.param_groups, base_lrs, scheduler.base_lrs, strict=True):
        group["initial_lr"], group["lr"] = new, group["lr"] * (new / old) if old else new
    scheduler.base_lrs = base_lrs
