"""The names of weights: ours, which are the public Sparse R-CNN's, and those of other projects.

===========================  ==========================================================================
public Sparse R-CNN          the same names; nothing is converted
mmdetection's Sparse R-CNN   ``rpn_head.*``, ``roi_head.bbox_head.{stage}.*``, ``neck.*``, ``backbone.*``
ResNets                      of torchvision and of timm, which agree: ``layer{1..4}.{block}.*``
other models of timm         behind ``build_timm_fpn_backbone`` and ``build_vit_sfp_backbone``
===========================  ==========================================================================

The module tree differs from the public names in the learned proposals alone: checkpoints have them at the top, the tree
has them in the proposal generator. Two hooks rename them when a state dict is loaded or made.

Conversion from mmdetection changes nothing but names, since the layouts agree: proposal boxes are normalized cxcywh;
the dynamic layer gives the first convolution's weights before the second's, and RoIs are flattened position by
position; classification and regression layers are flat lists of linear layer, norm and activation; box deltas are dx,
dy, dw, dh, of which mmdetection multiplies the first two by 0.5 where others divide by 2; images are RGB, normalized
with the same mean and std; ResNets stride in their 3x3 convolutions. One thing differs and is no weight: mmdetection
lets a stage resize a box by a factor of 62.5 at most, the others by 6250.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

#: Weights by their names: tensors, or the arrays of detectron2's own files.
StateDict: TypeAlias = Mapping[str, Any]

_OURS = "proposal_generator.init_proposal_"
_PUBLIC = "init_proposal_"
_MMDETECTION = "rpn_head.init_proposal_bboxes.weight"
_RESNET = "layer1.0.conv1.weight"
_BOTTOM_UP = "backbone.bottom_up."
_OWN = ("backbone.", "head.head_series.", "init_proposal_", "proposal_generator.")
_COUNTER = "num_batches_tracked"

# Of one stage of mmdetection's head, behind "roi_head.bbox_head.{stage}.".
_STAGE_PARTS = {
    "attention.attn.": "self_attn.",
    "attention_norm.": "norm1.",
    "instance_interactive_conv.dynamic_layer.": "inst_interact.dynamic_layer.",
    "instance_interactive_conv.norm_in.": "inst_interact.norm1.",
    "instance_interactive_conv.norm_out.": "inst_interact.norm2.",
    "instance_interactive_conv.fc_layer.": "inst_interact.out_layer.",
    "instance_interactive_conv.fc_norm.": "inst_interact.norm3.",
    "instance_interactive_conv_norm.": "norm2.",
    "ffn.layers.0.0.": "linear1.",
    "ffn.layers.1.": "linear2.",
    "ffn_norm.": "norm3.",
    "cls_fcs.": "cls_module.",
    "reg_fcs.": "reg_module.",
    "fc_cls.": "class_logits.",
    "fc_reg.": "bboxes_delta.",
}


def use_public_names(detector: nn.Module) -> None:
    """Makes ``detector.state_dict()`` and ``load_state_dict()`` speak the public checkpoints' names."""
    detector._register_state_dict_hook(_to_public)
    detector._register_load_state_dict_pre_hook(_from_public)


def public_name(name: str) -> str:
    """The public name of a tensor of the detector."""
    return _PUBLIC + name[len(_OURS) :] if name.startswith(_OURS) else name


def _to_public(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: object) -> None:
    _rename(state_dict, prefix + _OURS, prefix + _PUBLIC)


def _from_public(state_dict: dict[str, Any], prefix: str, *unused: object) -> None:
    _rename(state_dict, prefix + _PUBLIC, prefix + _OURS)


def _rename(state_dict: dict[str, Any], old_prefix: str, new_prefix: str) -> None:
    for name in [name for name in state_dict if name.startswith(old_prefix)]:
        state_dict[new_prefix + name[len(old_prefix) :]] = state_dict.pop(name)


@dataclass(frozen=True)
class Conversion:
    """A state dict in this project's names.

    Attributes:
        state_dict: the weights.
        source: whose names they had; empty: our own, or ones that are not known.
        not_used: names of the source that have no part in a detector, such as an ImageNet classifier's.
    """

    state_dict: dict[str, Any]
    source: str
    not_used: tuple[str, ...] = ()


def convert_state_dict(state_dict: StateDict, wanted: Iterable[str]) -> Conversion:
    """Converts the names of a state dict to those of a detector; unknown ones are left as they are.

    Args:
        state_dict: of a detector, or of a backbone alone.
        wanted: the names of the detector's own state dict.
    """
    names = set(wanted)
    plain = {name.removeprefix("module."): value for name, value in state_dict.items()}
    if _MMDETECTION in plain:
        return _renamed(plain, {name: _from_mmdetection(name) for name in plain}, names, "mmdetection's Sparse R-CNN")
    if names & plain.keys() or any(name.startswith(_OWN) for name in plain):
        return Conversion(plain, "")
    if _RESNET in plain and f"{_BOTTOM_UP}stem.conv1.weight" in names:
        mapping = {name: f"{_BOTTOM_UP}{_resnet_name(name)}" for name in plain}
        return _renamed(plain, mapping, names, "a ResNet of torchvision or timm")
    mapping = _timm_names(plain, names)
    return _renamed(plain, mapping, names, "a model of timm") if mapping else Conversion(plain, "")


def _renamed(plain: Mapping[str, Any], mapping: Mapping[str, str], wanted: set[str], source: str) -> Conversion:
    new_names = {old: mapping.get(old, old) for old in plain}
    # Frozen norms count no batches, and a backbone's classifier has no place. Other names are for the loader to report.
    dispensable = (_COUNTER, *(f"{_BOTTOM_UP}fc.{kind}" for kind in ("weight", "bias")))
    not_used = tuple(old for old, new in new_names.items() if new not in wanted and new.endswith(dispensable))
    return Conversion({new: plain[old] for old, new in new_names.items() if old not in not_used}, source, not_used)


def _from_mmdetection(name: str) -> str:
    if match := re.fullmatch(r"rpn_head\.init_proposal_(bboxes|features)\.weight", name):
        return f"init_proposal_{'boxes' if match[1] == 'bboxes' else 'features'}.weight"
    if match := re.fullmatch(r"neck\.(lateral|fpn)_convs\.(\d+)\.conv\.(weight|bias)", name):
        # The first map is res2's, of stride 4.
        return f"backbone.fpn_{'lateral' if match[1] == 'lateral' else 'output'}{int(match[2]) + 2}.{match[3]}"
    if match := re.fullmatch(r"roi_head\.bbox_head\.(\d+)\.(.+)", name):
        for old, new in _STAGE_PARTS.items():
            if match[2].startswith(old):
                return f"head.head_series.{match[1]}.{new}{match[2].removeprefix(old)}"
    if name.startswith("backbone."):
        return f"{_BOTTOM_UP}{_resnet_name(name.removeprefix('backbone.'))}"
    return name


def _resnet_name(name: str) -> str:
    """detectron2's name of a ResNet's parameter, from torchvision's."""
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name):
        prefix, rest = f"res{int(match[1]) + 1}.{match[2]}.", match[3]
    else:
        prefix, rest = ("" if name.startswith("fc.") else "stem."), name
    rest = re.sub(r"^bn(\d)\.", r"conv\1.norm.", rest)
    rest = re.sub(r"^downsample\.0\.", "shortcut.", rest)
    return prefix + re.sub(r"^downsample\.1\.", "shortcut.norm.", rest)


def _timm_names(plain: Mapping[str, Any], wanted: set[str]) -> dict[str, str]:
    """New names by old, empty unless most of the backbone's are found.

    timm's feature extractors call ``stages_0`` what its models call ``stages.0``.
    """
    own = {_flat(name.removeprefix(_BOTTOM_UP)): name for name in wanted if name.startswith(_BOTTOM_UP)}
    mapping = {name: own[_flat(name)] for name in plain if _flat(name) in own}
    return mapping if 2 * len(mapping) > len(own) else {}


def _flat(name: str) -> str:
    flat = name.replace(".", "_")
    for wrapper in ("model_", "body_", "vit_"):
        flat = flat.removeprefix(wrapper)
    return flat
