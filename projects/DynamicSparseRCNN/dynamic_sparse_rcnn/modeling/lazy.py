"""What lazy configs call where a ``CfgNode`` has a key: parts that are lists or dicts of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.layers import ShapeSpec

from .head.head import DynamicStage


def build_stages(num_stages: int, **arguments: Any) -> list[DynamicStage]:
    """The stages of a head, all with the arguments of :class:`DynamicStage`."""
    return [DynamicStage(**arguments) for _ in range(num_stages)]


def feature_levels(names: Sequence[str], strides: Sequence[int], channels: int) -> dict[str, ShapeSpec]:
    """The feature maps of a pyramid, finest first, by name."""
    return {name: ShapeSpec(channels=channels, stride=stride) for name, stride in zip(names, strides, strict=True)}
