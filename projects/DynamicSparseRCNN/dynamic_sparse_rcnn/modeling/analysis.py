"""What the parts of a model have and do: parameters, FLOPs and activations, counted by fvcore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detectron2.export.flatten import TracingAdapter
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis, parameter_count
from torch import nn


@dataclass(frozen=True)
class PartCount:
    """Counts of one part of a model, at a depth in the tree of its parts; the parts of a part follow it."""

    name: str
    depth: int
    parameters: int
    flops: int
    activations: int


def count_by_part(model: nn.Module, inputs: list[dict[str, Any]], depth: int) -> list[PartCount]:
    """Counts for the whole model, its parts and their parts, down to ``depth`` levels.

    Args:
        model: of detectron2's contract; left in evaluation mode.
        inputs: of the model, detectron2's dicts.
        depth: 0 for the whole model alone.
    """
    model.eval()
    flops = FlopCountAnalysis(model, inputs)
    adapter = TracingAdapter(model, inputs, allow_non_tensor=True)
    activations = ActivationCountAnalysis(adapter, adapter.flattened_inputs)
    for analysis in (flops, activations):
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_parameters, by_flops, by_activations = parameter_count(model), flops.by_module(), activations.by_module()
    counts = []
    for name, module in model.named_modules():
        level = len(name.split(".")) if name else 0
        if level <= depth and (by_parameters[name] or not name):
            traced = f"model.{name}".rstrip(".")
            label = name or type(module).__name__
            counts.append(PartCount(label, level, by_parameters[name], by_flops[traced], by_activations[traced]))
    return counts
