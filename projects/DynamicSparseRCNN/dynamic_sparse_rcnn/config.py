"""The configuration keys that this project adds to detectron2's, and how what is left open is resolved."""

from __future__ import annotations

import importlib
import logging
from typing import NamedTuple

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a meta-architecture is made of unless the config says otherwise; all else follows from the matcher."""

    proposal_generator: str
    matcher: str


#: By name of the meta-architecture; derived ones have their base's.
ARCHITECTURE_PARTS = {
    "SparseRCNN": Parts("LearnedProposalGenerator", "HungarianMatcher"),
    "DynamicSparseRCNN": Parts("DynamicProposalGenerator", "OptimalTransportMatcher"),
}

# The NMS of one-to-many matching (arXiv 2205.02101, section 4.1), and one that drops nothing.
_NMS_OF_ONE_TO_MANY, _NO_NMS = 0.7, 1.0
# What evaluations cut off at unless told otherwise, and the proposals beyond which that loses objects.
_DEFAULT_DETECTIONS, _MOST_USUAL_PROPOSALS = 100, 300


def add_dynamic_sparse_rcnn_config(cfg: CfgNode) -> None:
    """Adds the keys of Sparse R-CNN and ours. Public Sparse R-CNN yaml files load as they are.

    What is None is resolved by :func:`resolve_config`.
    """
    importlib.import_module(".api", __package__)  # whoever has the keys can build the parts that they name
    cfg.MODEL.SparseRCNN = CfgNode()
    _add_model(cfg.MODEL.SparseRCNN)
    _add_learning(cfg.MODEL.SparseRCNN)
    # Of OptimalTransportMatcher, and of the losses with one-to-many matchers.
    cfg.MODEL.SparseRCNN.DLA = CfgNode()
    _add_dynamic_label_assignment(cfg.MODEL.SparseRCNN.DLA)
    # Of DynamicProposalGenerator.
    cfg.MODEL.SparseRCNN.DPG = CfgNode()
    _add_dynamic_proposal_generation(cfg.MODEL.SparseRCNN.DPG)
    # Of the backbones build_timm_fpn_backbone and build_vit_sfp_backbone.
    cfg.MODEL.TIMM = CfgNode()
    _add_timm(cfg.MODEL.TIMM)
    # Of build_vit_sfp_backbone.
    cfg.MODEL.VIT = CfgNode()
    _add_vit(cfg.MODEL.VIT)
    # Whether their pyramids have p6, p5 subsampled by two (detectron2's own always have). Of the other keys of
    # MODEL.FPN, build_vit_sfp_backbone reads OUT_CHANNELS alone.
    cfg.MODEL.FPN.P6 = False
    _add_solver(cfg.SOLVER)
    _add_evaluation(cfg.TEST)
    # File (*.yaml or *.json) of an Albumentations pipeline that goes before the other augmentations of the training.
    cfg.INPUT.ALBUMENTATIONS = ""
    # In the config.yaml of runs of the public Sparse R-CNN: accepted and ignored, with a warning.
    for name in ("CVPODS_TTA", "SCALE_FILTER", "SCALE_RANGES"):
        cfg.register_deprecated_key(f"TEST.AUG.{name}")


def resolve_config(cfg: CfgNode) -> None:
    """Fills in what the config leaves open, in place; does nothing to a config that is resolved already.

    ``MODEL.META_ARCHITECTURE`` decides the proposal generator (detectron2's default, RPN, counts as open) and the
    matcher. The matcher decides, by ``Matcher.one_to_many``, what the losses are divided by
    (``MODEL.SparseRCNN.DLA.NORMALIZER``) and at which IoU detections are suppressed
    (``MODEL.SparseRCNN.NMS_THRESHOLD``). Architectures of others keep what they have.

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
    """A copy of the config, resolved by :func:`resolve_config`."""
    cfg = cfg.clone()
    resolve_config(cfg)
    return cfg


def _resolve(cfg: CfgNode) -> None:
    node = cfg.MODEL.SparseRCNN
    _open_old_defaults(node)
    parts = _parts_of(cfg.MODEL.META_ARCHITECTURE)
    if parts is not None:
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME in (None, "", "RPN"):
            cfg.MODEL.PROPOSAL_GENERATOR.NAME = parts.proposal_generator
        node.MATCHER = node.MATCHER or parts.matcher
        _keep_detections_of_all_proposals(cfg)
    if node.MATCHER is None:
        return
    one_to_many = _is_one_to_many(node.MATCHER)
    node.CRITERION = _choose_criterion(node.MATCHER, one_to_many, node.CRITERION)
    node.DLA.NORMALIZER = choose_normalizer(node.MATCHER, one_to_many, node.DLA.NORMALIZER)
    node.NMS_THRESHOLD = choose_nms_threshold(node.MATCHER, one_to_many, node.NMS_THRESHOLD)


def _open_old_defaults(node: CfgNode) -> None:
    """Files of before had "" and 0.0 where now there is None, and then a normalizer that nobody had chosen."""
    if "" in (node.CRITERION, node.MATCHER) or node.NMS_THRESHOLD == 0:
        node.CRITERION, node.MATCHER = node.CRITERION or None, node.MATCHER or None
        node.NMS_THRESHOLD = node.NMS_THRESHOLD or None
        node.DLA.NORMALIZER = None if node.DLA.NORMALIZER == "positives" else node.DLA.NORMALIZER


def _parts_of(architecture: str) -> Parts | None:
    from detectron2.modeling import META_ARCH_REGISTRY  # imports PyTorch, which reading a config does not need

    if architecture not in META_ARCH_REGISTRY:
        return ARCHITECTURE_PARTS.get(architecture)
    bases = META_ARCH_REGISTRY.get(architecture).__mro__
    return next((ARCHITECTURE_PARTS[base.__name__] for base in bases if base.__name__ in ARCHITECTURE_PARTS), None)


def _keep_detections_of_all_proposals(cfg: CfgNode) -> None:
    """Crowded data sets have more objects an image than detectron2 keeps by default."""
    proposals = cfg.MODEL.SparseRCNN.NUM_PROPOSALS
    if cfg.TEST.DETECTIONS_PER_IMAGE == _DEFAULT_DETECTIONS and proposals > _MOST_USUAL_PROPOSALS:
        cfg.TEST.DETECTIONS_PER_IMAGE = proposals
        logger.info(f"TEST.DETECTIONS_PER_IMAGE follows MODEL.SparseRCNN.NUM_PROPOSALS: {proposals}")


def _is_one_to_many(matcher: str) -> bool:
    from .modeling.assignment.matchers import MATCHER_REGISTRY  # which resolves configs itself

    if matcher not in MATCHER_REGISTRY:
        registered = ", ".join(sorted(name for name, _ in MATCHER_REGISTRY))
        raise ValueError(f"MODEL.SparseRCNN.MATCHER is {matcher!r}: registered are {registered}")
    one_to_many: bool = MATCHER_REGISTRY.get(matcher).one_to_many
    return one_to_many


def _choose_criterion(matcher: str, one_to_many: bool, chosen: str | None) -> str:
    if chosen == "DLACriterion":  # of before: SetCriterion with a one-to-many matcher
        if not one_to_many:
            raise ValueError(
                f"MODEL.SparseRCNN.CRITERION DLACriterion needs a one-to-many matcher, but MODEL.SparseRCNN.MATCHER is "
                f"{matcher}, which is one-to-one: set MATCHER to OptimalTransportMatcher, or leave CRITERION out"
            )
        return "SetCriterion"
    return chosen or "SetCriterion"


def choose_normalizer(matcher: str, one_to_many: bool, chosen: str | None) -> str | None:
    """What the losses are divided by: ``positives`` or ``num_gt``; None for one-to-one, where it is the latter.

    Args:
        matcher: its name, for messages.
        one_to_many: whether it is.
        chosen: ``MODEL.SparseRCNN.DLA.NORMALIZER``; None: the usual one.

    Raises:
        ValueError: one-to-one matchers have no choice; or the name is unknown.
    """
    if chosen is None:
        return "positives" if one_to_many else None
    if chosen not in ("positives", "num_gt"):
        raise ValueError(f"MODEL.SparseRCNN.DLA.NORMALIZER is {chosen!r}: use positives or num_gt")
    if not one_to_many:
        raise ValueError(
            f"MODEL.SparseRCNN.DLA.NORMALIZER is {chosen!r}, but MODEL.SparseRCNN.MATCHER {matcher} is one-to-one: its "
            "losses are divided by the number of ground truths. Leave NORMALIZER out, or use a one-to-many matcher"
        )
    return chosen


def choose_nms_threshold(matcher: str, one_to_many: bool, chosen: float | None) -> float:
    """The IoU of the NMS; 1: none.

    Args:
        matcher: its name, for messages.
        one_to_many: whether it is.
        chosen: ``MODEL.SparseRCNN.NMS_THRESHOLD``; None: the usual one.

    Raises:
        ValueError: a one-to-many matcher without NMS; or not an IoU.
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


def _add_model(node: CfgNode) -> None:
    # Number of classes; 0: as many as DATASETS.TRAIN has (tools/train_net.py looks it up).
    node.NUM_CLASSES = 80
    node.NUM_PROPOSALS = 300
    # Where the learned proposal boxes start: image (published), grid or random.
    node.INIT_BOXES = "image"

    # The head. NUM_HEADS is the number of stages, NHEADS that of attention heads.
    node.NUM_HEADS = 6
    node.NHEADS = 8
    node.DROPOUT = 0.0
    node.DIM_FEEDFORWARD = 2048
    # relu or gelu, in the feed-forward network.
    node.ACTIVATION = "relu"
    # Channels of proposal features; MODEL.FPN.OUT_CHANNELS must be the same.
    node.HIDDEN_DIM = 256
    # Layers before the class logits and before the box deltas.
    node.NUM_CLS = 1
    node.NUM_REG = 3
    # The dynamic convolution: its layers (only 2 is defined) and the channels between them.
    node.NUM_DYNAMIC = 2
    node.DIM_DYNAMIC = 64
    # Recompute the activations of the stages in the backward pass: less memory, more time.
    node.GRAD_CHECKPOINTING = False

    # IoU of the class-wise NMS on the detections; 1: none; None: 0.7 for one-to-many matchers, else 1.
    node.NMS_THRESHOLD = None


def _add_learning(node: CfgNode) -> None:
    # From MATCHER_REGISTRY; None: the meta-architecture's own.
    node.MATCHER = None
    # From CRITERION_REGISTRY; None: SetCriterion.
    node.CRITERION = None
    # Weights of the losses and of the matching costs.
    node.CLASS_WEIGHT = 2.0
    node.GIOU_WEIGHT = 2.0
    node.L1_WEIGHT = 5.0
    # Whether all stages learn, or the last alone.
    node.DEEP_SUPERVISION = True
    # Focal loss, and the probability of an object at the start of the training.
    node.ALPHA = 0.25
    node.GAMMA = 2.0
    node.PRIOR_PROB = 0.01
    # Whether proposals inside crowd regions (COCO's iscrowd), which nobody annotated one by one, are spared from
    # learning to be background there.
    node.IGNORE_CROWD = False
    # Of the softmax variant of the public files, which is not supported: False is an error, and the
    # weight is not read.
    node.USE_FOCAL = True
    node.NO_OBJECT_WEIGHT = 0.1


def _add_dynamic_label_assignment(dla: CfgNode) -> None:
    # Units of each ground truth; 0: dynamic, the sum of its TOP_Q largest IoUs.
    dla.K = 0
    dla.TOP_Q = 8
    # Units that each stage gets more than the one before it.
    dla.UNIT_STEP = 0.5
    # Largest share of the proposals that ground truths may supply.
    dla.MAX_POSITIVE_RATIO = 0.8
    # sinkhorn: all problems at once on their device; exact: one after the other on the host.
    dla.SOLVER = "sinkhorn"
    dla.SINKHORN_EPS = 0.05
    dla.SINKHORN_ITERS = 100
    # What the losses of a stage are divided by: its positives, or the number of ground truths (num_gt); None: the
    # positives. One-to-one matchers leave no choice: there it stays None.
    dla.NORMALIZER = None


def _add_timm(node: CfgNode) -> None:
    # A name of timm's, with or without the tag of its weights: resnet50, swin_tiny_patch4_window7_224.ms_in1k.
    node.NAME = "resnet50"
    # Whether it starts with the weights that timm's hub has under that name; read if MODEL.WEIGHTS is "".
    node.PRETRAINED = False
    # A file of weights (.safetensors, .pth) or its URL, in any layout that timm reads (its own, MAE's), or
    # package://MODULE, the weights in an installed package; instead of the hub's.
    node.CHECKPOINT = ""
    # Indices of timm's feature maps (of one block, with a plain vision transformer); (): all (the last).
    # Those of strides 4..32 are called res2..res5 in MODEL.FPN.IN_FEATURES.
    node.OUT_INDICES = ()
    # Rate of stochastic depth.
    node.DROP_PATH = 0.0
    # 0: nothing is frozen; 1: the stem; 2: up to stride 4; .. 5: up to stride 32. With a plain vision
    # transformer 1: the embeddings; n: n - 1 blocks too. MODEL.BACKBONE.FREEZE_AT is not read.
    node.FREEZE_AT = 0
    # Batch norms keep their statistics; and their scale and shift. Both: detectron2's FrozenBN. (Plain vision
    # transformers have none.)
    node.NORM_EVAL = False
    node.NORM_FROZEN = False
    # Recompute activations in the backward pass: less memory, more time (some models need timm 1.0.31).
    node.GRAD_CHECKPOINTING = False
    # model: images are normalised (and their channels ordered) as the model's data config says;
    # config: as MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT say.
    node.NORMALIZATION = "model"
    # What input height and width are padded to multiples of, beyond what the FPN needs. (Plain vision
    # transformers need no more.)
    node.SIZE_DIVISIBILITY = 0


def _add_vit(node: CfgNode) -> None:
    # Side, in patches, of the windows that blocks attend within; 0: all blocks attend globally.
    node.WINDOW_SIZE = 0
    # Indices of the blocks that attend globally all the same.
    node.GLOBAL_BLOCKS = ()


def _add_dynamic_proposal_generation(dpg: CfgNode) -> None:
    # Sets of boxes and features that an image's proposals are mixed from; 1: the static proposals.
    dpg.NUM_EXPERTS = 4
    # The levels that the router looks at, finest first; empty: those of MODEL.ROI_HEADS.IN_FEATURES. Its map has half
    # the coarsest one's resolution: small images want finer levels.
    dpg.IN_FEATURES = ()
    # Whether the router aggregates all of these levels, or looks at the coarsest alone.
    dpg.STAIRCASE = True
    # Channels between the router's two linear layers, and side of the square that feature maps are resized to.
    dpg.HIDDEN_DIM = 1500
    dpg.POOL_SIZE = 30
    # Of the softmax over experts: falls from TEMPERATURE to TEMPERATURE_END in TEMPERATURE_ITERS iterations (0:
    # 10/36 of SOLVER.MAX_ITER; scaled like it), then stays. Inference uses TEMPERATURE_END.
    dpg.TEMPERATURE = 30.0
    dpg.TEMPERATURE_END = 1.0
    dpg.TEMPERATURE_ITERS = 0
    # How far from the first expert the others start, as a share of the boxes' size and of the features' root
    # mean square; 0: all alike, and nothing then tells them apart.
    dpg.EXPERT_INIT = 0.5


def _add_solver(node: CfgNode) -> None:
    # ADAMW or SGD.
    node.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone, in units of BASE_LR.
    node.BACKBONE_MULTIPLIER = 1.0
    # Learning rate of the router of dynamic proposal generation, likewise. The fewer channels a router has, the slower
    # it learns: one of a few dozen, not 1500, wants about 10.
    node.ROUTER_MULTIPLIER = 1.0
    # The batch size for which learning rate, warm-up, steps, length and periods are written. With another
    # IMS_PER_BATCH all are scaled to it; 0: never.
    node.REFERENCE_BATCH_SIZE = 16
    # Layer-wise decay of the learning rate, for plain vision transformers: that of each block is multiplied by
    # it once for every layer above; 1: none.
    node.LAYER_DECAY = 1.0
    # What has no weight decay: any of norm, bias, pos_embed (with class tokens and relative positions).
    node.NO_WEIGHT_DECAY = ()
    # In how many parts the IMS_PER_BATCH images of an iteration are run, one after the other, before the optimiser's
    # step: memory for one part, the gradient of all.
    node.ACCUMULATE_STEPS = 1
    # Of mixed precision (AMP.ENABLED): float16, with a gradient scaler, or bfloat16. On the CPU always bfloat16.
    node.AMP.PRECISION = "float16"


def _add_evaluation(node: CfgNode) -> None:
    # Pascal VOC's metric, beside COCO's: none; voc2007 or voc2012, for all data sets in the style of that year; or
    # auto, for VOC's own alone, in the style of their year (voc:<folder>:<split>: 2012).
    node.VOC_METRIC = "auto"
    # Whether evaluations are run in mixed precision too, those of a training among them, and in which (as
    # SOLVER.AMP.PRECISION).
    node.AMP = CfgNode({"ENABLED": False, "PRECISION": "float16"})
