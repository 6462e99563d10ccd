"""Resolves what a config leaves open: it follows from the meta-architecture and the matcher."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The default parts of a meta-architecture. Everything else follows from the matcher."""

    proposal_generator: str
    matcher: str


#: Default parts by name of the meta-architecture. Subclasses have those of their base class.
ARCHITECTURE_PARTS = {
    "SparseRCNN": Parts("LearnedProposalGenerator", "HungarianMatcher"),
    "DynamicSparseRCNN": Parts("DynamicProposalGenerator", "OptimalTransportMatcher"),
}

# NMS thresholds for one-to-many matching (arXiv 2205.02101, section 4.1), and without NMS.
_NMS_OF_ONE_TO_MANY, _NO_NMS = 0.7, 1.0
# detectron2's default of TEST.DETECTIONS_PER_IMAGE, and the number of proposals above which it is too small.
_DEFAULT_DETECTIONS, _MOST_USUAL_PROPOSALS = 100, 300


def resolve_config(cfg: CfgNode) -> None:
    """Fills in what the config leaves open, in place. A resolved config stays as it is.

    ``MODEL.META_ARCHITECTURE`` determines the default proposal generator (detectron2's default, RPN, counts as open)
    and the default matcher. ``Matcher.one_to_many`` determines the divisor of the losses
    (``MODEL.SparseRCNN.DLA.NORMALIZER``) and the NMS threshold (``MODEL.SparseRCNN.NMS_THRESHOLD``). Other
    meta-architectures have no default parts.

    Raises:
        ValueError: keys contradict each other, or a name is not registered; names the keys and the remedy.
    """
    frozen = cfg.is_frozen()
    cfg.defrost()
    try:
        _resolve(cfg)
    finally:
        if frozen:
            cfg.freeze()


def resolved_copy(cfg: CfgNode) -> CfgNode:
    """Returns a copy of the config, resolved by :func:`resolve_config`."""
    cfg = cfg.clone()
    resolve_config(cfg)
    return cfg


def _resolve(cfg: CfgNode) -> None:
    node = cfg.MODEL.SparseRCNN
    parts = _parts_of(cfg.MODEL.META_ARCHITECTURE)
    if parts is not None:
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME in (None, "", "RPN"):
            cfg.MODEL.PROPOSAL_GENERATOR.NAME = parts.proposal_generator
        node.MATCHER = node.MATCHER or parts.matcher
        _keep_detections_of_all_proposals(cfg)
    if node.MATCHER is None:
        return
    one_to_many = _is_one_to_many(node.MATCHER)
    node.DLA.NORMALIZER = choose_normalizer(node.MATCHER, one_to_many, node.DLA.NORMALIZER)
    node.NMS_THRESHOLD = choose_nms_threshold(node.MATCHER, one_to_many, node.NMS_THRESHOLD)


def _parts_of(architecture: str) -> Parts | None:
    from detectron2.modeling import META_ARCH_REGISTRY  # slow to import, and not needed to read a config

    if architecture not in META_ARCH_REGISTRY:
        return ARCHITECTURE_PARTS.get(architecture)
    bases = META_ARCH_REGISTRY.get(architecture).__mro__
    return next((ARCHITECTURE_PARTS[base.__name__] for base in bases if base.__name__ in ARCHITECTURE_PARTS), None)


def _keep_detections_of_all_proposals(cfg: CfgNode) -> None:
    """Raises detectron2's default limit of detections for models with many proposals, which are for crowded images."""
    if cfg.TEST.DETECTIONS_PER_IMAGE == 0:
        raise ValueError("TEST.DETECTIONS_PER_IMAGE is 0: give the most detections that are wanted, or -1 for no limit")
    proposals = cfg.MODEL.SparseRCNN.NUM_PROPOSALS
    if cfg.TEST.DETECTIONS_PER_IMAGE == _DEFAULT_DETECTIONS and proposals > _MOST_USUAL_PROPOSALS:
        cfg.TEST.DETECTIONS_PER_IMAGE = proposals
        logger.info(f"TEST.DETECTIONS_PER_IMAGE follows MODEL.SparseRCNN.NUM_PROPOSALS: {proposals}")


def find_registered(registry: Registry, name: str, key: str) -> Any:
    """Looks up a name in a registry.

    Args:
        registry: where to look.
        name: the name.
        key: the config key that has it, for the error message.

    Raises:
        ValueError: the name is not registered; lists those that are.
    """
    if name not in registry:
        registered = ", ".join(sorted(known for known, _ in registry))
        raise ValueError(f"{key} is {name!r}: registered are {registered}. Import the module of your own (--import)")
    return registry.get(name)


def _is_one_to_many(matcher: str) -> bool:
    from .modeling.assignment.matchers import MATCHER_REGISTRY  # it imports this module

    one_to_many: bool = find_registered(MATCHER_REGISTRY, matcher, "MODEL.SparseRCNN.MATCHER").one_to_many
    return one_to_many


def choose_normalizer(matcher: str, one_to_many: bool, chosen: str | None) -> str | None:
    """Returns the divisor of the losses: ``positives``, ``num_gt``, or None for one-to-one matchers.

    One-to-one matchers leave no choice: their losses are divided by the number of ground truths.

    Args:
        matcher: name of the matcher, for the error message.
        one_to_many: whether the matcher is one-to-many.
        chosen: ``MODEL.SparseRCNN.DLA.NORMALIZER``; None: the default.

    Raises:
        ValueError: the choice is unknown, or contradicts the matcher.
    """
    if chosen is None:
        return "positives" if one_to_many else None
    if chosen not in ("positives", "num_gt"):
        raise ValueError(f"MODEL.SparseRCNN.DLA.NORMALIZER is {chosen!r}: use positives or num_gt")
    if not one_to_many:
        raise ValueError(
            f"MODEL.SparseRCNN.DLA.NORMALIZER is {chosen!r}, but MODEL.SparseRCNN.MATCHER {matcher} is one-to-one: its "
            "losses are divided by the number of ground truths. Remove NORMALIZER, or use a one-to-many matcher"
        )
    return chosen


def choose_nms_threshold(matcher: str, one_to_many: bool, chosen: float | None) -> float:
    """Returns the IoU threshold of NMS; 1 means no NMS.

    Args:
        matcher: name of the matcher, for the error message.
        one_to_many: whether the matcher is one-to-many.
        chosen: ``MODEL.SparseRCNN.NMS_THRESHOLD``; None: the default.

    Raises:
        ValueError: the choice is not an IoU, or is 1 with a one-to-many matcher.
    """
    if chosen is None:
        return _NMS_OF_ONE_TO_MANY if one_to_many else _NO_NMS
    if not isinstance(chosen, (int, float)) or not chosen > 0:
        raise ValueError(f"MODEL.SparseRCNN.NMS_THRESHOLD is {chosen!r}: use an IoU above 0, or 1 for no NMS")
    if one_to_many and chosen >= _NO_NMS:
        raise ValueError(
            f"MODEL.SparseRCNN.NMS_THRESHOLD is {chosen} (none), and MODEL.SparseRCNN.MATCHER {matcher} one-to-many: "
            f"an object would be found several times. Set NMS_THRESHOLD below 1 ({_NMS_OF_ONE_TO_MANY} is usual, "
            "0.999 drops only equal boxes), or use a one-to-one matcher"
        )
    return float(chosen)
