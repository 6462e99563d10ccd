"""The parameter names of public Sparse R-CNN checkpoints, and ours. No other file knows both.

All names agree but those of the learned proposals: public checkpoints have them at the top, our tree
has them in the proposal generator. Two hooks rename them when a state dict is loaded or made.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_OURS = "proposal_generator.init_proposal_"
_PUBLIC = "init_proposal_"


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
