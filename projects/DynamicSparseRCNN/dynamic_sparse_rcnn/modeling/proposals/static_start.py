"""Initializes the experts of dynamic proposals from the static proposals of a checkpoint."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .dynamic import DynamicProposalGenerator

logger = logging.getLogger(__name__)

_STATIC = "init_proposal_{}.weight"
_DYNAMIC = "expert_proposal_{}.weight"


def start_from_static_checkpoints(generator: DynamicProposalGenerator) -> None:
    """Makes ``generator`` initialize all experts from the proposals of a static checkpoint when one is loaded.

    The experts get random offsets as at the start of a training, the same in every process. Logs one line. Proposals
    of another number or with other channels are not used: a warning says so.
    """
    generator._register_load_state_dict_pre_hook(_fill_experts, with_module=True)


def _fill_experts(
    generator: DynamicProposalGenerator, state_dict: dict[str, Any], prefix: str, *unused: object
) -> None:
    names = {kind: prefix + _STATIC.format(kind) for kind in ("boxes", "features")}
    if not all(name in state_dict for name in names.values()):
        return
    boxes, features = (state_dict[name] for name in names.values())
    found = [tuple(boxes.shape), tuple(features.shape)]
    wanted = [(generator.num_proposals, 4), (generator.num_proposals, generator.expert_features.shape[2])]
    if found != wanted:
        logger.warning(
            f"The checkpoint's proposals have the shapes {found} instead of {wanted}: they are not used. "
            "Set MODEL.SparseRCNN.NUM_PROPOSALS and HIDDEN_DIM as they were."
        )
        return
    experts = generator.spread(boxes, features, torch.Generator().manual_seed(0))
    for (kind, name), values in zip(names.items(), experts, strict=True):
        state_dict[prefix + _DYNAMIC.format(kind)] = values
        del state_dict[name]
    logger.info(
        f"All {generator.num_experts} experts start from the checkpoint's static proposals "
        f"(MODEL.SparseRCNN.DPG.EXPERT_INIT {generator.expert_init:g}); the router starts untrained."
    )
