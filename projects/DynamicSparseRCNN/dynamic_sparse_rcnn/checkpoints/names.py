"""The parameter names of public Sparse R-CNN checkpoints, and ours. No other file knows both.

All names agree but those of the learned proposals: public checkpoints have them at the top, our tree
has them in the proposal generator. Two hooks rename them when a state dict is loaded or made.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from ..modeling.proposals.dynamic import DynamicProposalGenerator

logger = logging.getLogger(__name__)

_OURS = "proposal_generator.init_proposal_"
_PUBLIC = "init_proposal_"


def use_public_names(detector: nn.Module) -> None:
    """Makes ``detector.state_dict()`` and ``load_state_dict()`` speak the public checkpoints' names."""
    detector._register_state_dict_hook(_to_public)
    detector._register_load_state_dict_pre_hook(_from_public)


def start_experts_from_static_checkpoints(generator: DynamicProposalGenerator) -> None:
    """Makes ``generator`` take the proposals of a static checkpoint as the start of all its experts.

    They are spread as at the start of a training, with the same random numbers in every process. Logs one line.
    A checkpoint with another number of proposals or channels is left as it is: loading reports its names.
    """
    generator._register_load_state_dict_pre_hook(_fill_experts, with_module=True)


def _fill_experts(
    generator: DynamicProposalGenerator, state_dict: dict[str, Any], prefix: str, *unused: object
) -> None:
    names = [f"{prefix}{_PUBLIC}{kind}.weight" for kind in ("boxes", "features")]
    if not all(name in state_dict for name in names):
        return
    boxes, features = (state_dict[name] for name in names)
    found = [tuple(boxes.shape), tuple(features.shape)]
    wanted = [(generator.num_proposals, 4), (generator.num_proposals, generator.expert_features.shape[2])]
    if found != wanted:
        logger.warning(
            f"The checkpoint's proposals have the shapes {found} instead of {wanted}: they are not used. "
            "Set MODEL.SparseRCNN.NUM_PROPOSALS and HIDDEN_DIM as they were."
        )
        return
    experts = generator.spread(boxes, features, torch.Generator().manual_seed(0))
    for kind, values in zip(("boxes", "features"), experts, strict=True):
        state_dict[f"{prefix}expert_proposal_{kind}.weight"] = values
    for name in names:
        del state_dict[name]
    logger.info(
        f"All {generator.num_experts} experts start from the checkpoint's static proposals "
        f"(MODEL.SparseRCNN.DPG.EXPERT_INIT {generator.expert_init:g}); the router starts untrained."
    )


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
