"""The configuration keys that this project adds to detectron2's."""

from __future__ import annotations

import importlib

from detectron2.config import CfgNode

from .config_resolution import resolve_config as resolve_config


def add_dynamic_sparse_rcnn_config(cfg: CfgNode) -> None:
    """Adds the keys of Sparse R-CNN and ours. Public Sparse R-CNN yaml files load as they are.

    What is None is resolved by :func:`resolve_config`.
    """
    importlib.import_module(".api", __package__)  # whoever has the keys can build the parts that they name
    # The detector: proposals, cascade, matching and losses.
    cfg.MODEL.SparseRCNN = CfgNode()
    _add_model(cfg.MODEL.SparseRCNN)
    _add_learning(cfg.MODEL.SparseRCNN)
    # Dynamic label assignment: OptimalTransportMatcher and, with any one-to-many matcher, the divisor of the losses.
    cfg.MODEL.SparseRCNN.DLA = CfgNode()
    _add_dynamic_label_assignment(cfg.MODEL.SparseRCNN.DLA)
    # Dynamic proposal generation: DynamicProposalGenerator.
    cfg.MODEL.SparseRCNN.DPG = CfgNode()
    _add_dynamic_proposal_generation(cfg.MODEL.SparseRCNN.DPG)
    # timm models as backbones: build_timm_fpn_backbone and build_vit_sfp_backbone.
    cfg.MODEL.TIMM = CfgNode()
    _add_timm(cfg.MODEL.TIMM)
    # Plain vision transformers: build_vit_sfp_backbone.
    cfg.MODEL.VIT = CfgNode()
    _add_vit(cfg.MODEL.VIT)
    # Add p6, which is p5 subsampled by two, to the pyramids of build_timm_fpn_backbone and build_vit_sfp_backbone.
    # (detectron2's own pyramids always have it. The only other key of MODEL.FPN that build_vit_sfp_backbone reads is
    # OUT_CHANNELS.)
    cfg.MODEL.FPN.P6 = False
    # Whether the backbone's weights and maps have their channels side by side in memory: the same values, and faster in
    # mixed precision on CPUs that have bfloat16 instructions.
    cfg.MODEL.CHANNELS_LAST = False
    _add_solver(cfg.SOLVER)
    _add_evaluation(cfg.TEST)
    # Where training logs to, in addition to the terminal and metrics.json: any of tensorboard, wandb, mlflow.
    cfg.LOGGERS = ("tensorboard",)
    # File (.yaml or .json) of an Albumentations pipeline, applied before the other training augmentations.
    cfg.INPUT.ALBUMENTATIONS = ""
    # Largest relative change of brightness, contrast and saturation of training images, from 0 (none) to below 1.
    cfg.INPUT.COLOR_JITTER = 0.0
    # Megabytes of decoded training images that each worker keeps in memory, shrunk to twice the largest of
    # INPUT.MIN_SIZE_TRAIN; 0: none, and images are not shrunk.
    cfg.DATALOADER.CACHE_MEGABYTES = 0
    # In the config.yaml of runs of the public Sparse R-CNN: accepted and ignored, with a warning.
    for name in ("CVPODS_TTA", "SCALE_FILTER", "SCALE_RANGES"):
        cfg.register_deprecated_key(f"TEST.AUG.{name}")


def _add_model(node: CfgNode) -> None:
    # Number of classes; 0: as many as the data sets of DATASETS.TRAIN have, filled in when a run starts.
    node.NUM_CLASSES = 80
    # Proposals per image.
    node.NUM_PROPOSALS = 300
    # Where the learned proposal boxes start: image (the whole image, as published), grid or random.
    node.INIT_BOXES = "image"
    # How far apart the learned proposal features start, from 0 (all alike) to 1 (independent, as published).
    node.INIT_FEATURE_SPREAD = 1.0

    # Number of stages of the cascade.
    node.NUM_HEADS = 6
    # Number of attention heads in each stage.
    node.NHEADS = 8
    # Dropout rate in the attention and feed-forward blocks of each stage.
    node.DROPOUT = 0.0
    # Hidden width of the feed-forward network of each stage.
    node.DIM_FEEDFORWARD = 2048
    # Activation of the feed-forward network: relu or gelu.
    node.ACTIVATION = "relu"
    # Channels of the proposal features; MODEL.FPN.OUT_CHANNELS must be the same.
    node.HIDDEN_DIM = 256
    # Linear layers before the class logits.
    node.NUM_CLS = 1
    # Linear layers before the box deltas.
    node.NUM_REG = 3
    # Layers of the dynamic convolution; only 2 is supported.
    node.NUM_DYNAMIC = 2
    # Channels between the two layers of the dynamic convolution.
    node.DIM_DYNAMIC = 64
    # Recompute the activations of each stage in the backward pass: less memory, more time.
    node.GRAD_CHECKPOINTING = False

    # IoU threshold of class-wise NMS on the detections; 1: no NMS; None: 0.7 with a one-to-many matcher, otherwise 1.
    node.NMS_THRESHOLD = None


def _add_learning(node: CfgNode) -> None:
    # Name in MATCHER_REGISTRY; None: follows from MODEL.META_ARCHITECTURE.
    node.MATCHER = None
    # Name in CRITERION_REGISTRY.
    node.CRITERION = "SetCriterion"
    # Names in COST_REGISTRY: the terms of the matching cost.
    node.COSTS = ["ClassCost", "L1Cost", "GIoUCost"]
    # Names in LOSS_REGISTRY: the losses of SetCriterion.
    node.LOSSES = ["ClassLoss", "L1Loss", "GIoULoss"]
    # Weight of the focal loss and of the classification cost.
    node.CLASS_WEIGHT = 2.0
    # Weight of the GIoU loss and of the GIoU cost.
    node.GIOU_WEIGHT = 2.0
    # Weight of the L1 loss and of the L1 cost; both are measured in units of the image size.
    node.L1_WEIGHT = 5.0
    # Supervise every stage; False: only the last one.
    node.DEEP_SUPERVISION = True
    # Weight of the positive class in the focal loss.
    node.ALPHA = 0.25
    # Exponent of the focal loss.
    node.GAMMA = 2.0
    # Probability that each class score starts with; sets the initial bias of the class logits.
    node.PRIOR_PROB = 0.01
    # Exclude proposals inside crowd regions (COCO's iscrowd) from the background loss: objects there are not annotated
    # one by one.
    node.IGNORE_CROWD = False
    # Focal loss. The softmax variant of the public code is not supported: False is an error.
    node.USE_FOCAL = True
    # Accepted so that public config files load; not read, because it belongs to the softmax variant.
    node.NO_OBJECT_WEIGHT = 0.1


def _add_dynamic_label_assignment(dla: CfgNode) -> None:
    # Units that each ground truth supplies; 0: dynamic, the sum of its TOP_Q largest IoUs.
    dla.K = 0
    # How many of the largest IoUs are summed for a dynamic number of units.
    dla.TOP_Q = 8
    # How many more units each stage gets than the stage before it.
    dla.UNIT_STEP = 0.5
    # Largest share of the proposals that all ground truths together may supply.
    dla.MAX_POSITIVE_RATIO = 0.8
    # Solver: sinkhorn (all problems at once, on their device) or exact (one after the other, on the CPU).
    dla.SOLVER = "sinkhorn"
    # Weight of the entropy in Sinkhorn's objective, in units of the cost.
    dla.SINKHORN_EPS = 0.05
    # Number of Sinkhorn iterations.
    dla.SINKHORN_ITERS = 100
    # What the losses of a stage are divided by: positives (those of the stage) or num_gt (the number of ground truths).
    # None: positives. With a one-to-one matcher it must stay None: losses are then divided by the number of ground
    # truths.
    dla.NORMALIZER = None


def _add_timm(node: CfgNode) -> None:
    # Model name in timm, with or without the tag of its weights: resnet50, swin_tiny_patch4_window7_224.ms_in1k.
    node.NAME = "resnet50"
    # Start from the weights that timm's hub has under this name. Ignored when MODEL.WEIGHTS is set.
    node.PRETRAINED = False
    # Weights instead of the hub's: a file (.safetensors, .pth) or a URL, in any layout that timm reads (its own,
    # MAE's), or package://MODULE for the weights in an installed package.
    node.CHECKPOINT = ""
    # Indices of timm's feature maps, or of one block of a plain vision transformer; (): all feature maps, or the last
    # block. Maps of strides 4 to 32 are called res2 to res5 in MODEL.FPN.IN_FEATURES.
    node.OUT_INDICES = ()
    # Rate of stochastic depth.
    node.DROP_PATH = 0.0
    # How much of the backbone is frozen; replaces MODEL.BACKBONE.FREEZE_AT. 0: nothing; 1: the stem; 2 to 5: everything
    # up to stride 4, 8, 16, 32. In a plain vision transformer 1: the embeddings; n: the first n - 1 blocks as well.
    node.FREEZE_AT = 0
    # Keep the running statistics of batch norms fixed.
    node.NORM_EVAL = False
    # Keep scale and shift of batch norms fixed. With NORM_EVAL, this equals detectron2's FrozenBN.
    node.NORM_FROZEN = False
    # Recompute the backbone's activations in the backward pass: less memory, more time. Some models need timm 1.0.31.
    node.GRAD_CHECKPOINTING = False
    # Image normalization: model (mean, std and channel order of the pretrained model) or config (MODEL.PIXEL_MEAN,
    # MODEL.PIXEL_STD and INPUT.FORMAT).
    node.NORMALIZATION = "model"
    # Pad input height and width to multiples of this number, beyond what the FPN needs. Plain vision transformers
    # need nothing more.
    node.SIZE_DIVISIBILITY = 0


def _add_vit(node: CfgNode) -> None:
    # Side of the attention windows, in patches; 0: all blocks attend globally.
    node.WINDOW_SIZE = 0
    # Indices of the blocks that attend globally although there are windows.
    node.GLOBAL_BLOCKS = ()


def _add_dynamic_proposal_generation(dpg: CfgNode) -> None:
    # Number of experts, each a set of proposal boxes and features; 1: static proposals.
    dpg.NUM_EXPERTS = 4
    # Feature maps that the router reads, finest first; (): those of MODEL.ROI_HEADS.IN_FEATURES. The router's map has
    # half the resolution of the coarsest one, so small images need finer levels.
    dpg.IN_FEATURES = ()
    # Aggregate all of these levels (the paper's staircase); False: read the coarsest one alone.
    dpg.STAIRCASE = True
    # Channels between the two linear layers of the router.
    dpg.HIDDEN_DIM = 1500
    # Side of the square map that the router's linear layers read.
    dpg.POOL_SIZE = 30
    # Temperature of the softmax over experts in the first iteration.
    dpg.TEMPERATURE = 30.0
    # Temperature after TEMPERATURE_ITERS iterations, and at inference.
    dpg.TEMPERATURE_END = 1.0
    # Number of iterations in which the temperature falls linearly; 0: 10/36 of SOLVER.MAX_ITER. Scaled to the batch
    # size like SOLVER.MAX_ITER.
    dpg.TEMPERATURE_ITERS = 0
    # How far from the first expert the others start, as a share of the box size and of the features' root mean square;
    # 0: all experts start alike, and nothing can tell them apart.
    dpg.EXPERT_INIT = 0.5
    # Weight of an L1 and a GIoU loss on the initial boxes, static or dynamic, matched one to one with the ground
    # truths; they are logged as loss_start_bbox and loss_start_giou. 0: none, as published: the initial boxes then
    # learn from the first stage's losses alone.
    dpg.START_LOSS_WEIGHT = 0.0


def _add_solver(node: CfgNode) -> None:
    # Optimizer: ADAMW or SGD.
    node.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone, as a multiple of SOLVER.BASE_LR.
    node.BACKBONE_MULTIPLIER = 1.0
    # Learning rate of the router of dynamic proposal generation, as a multiple of SOLVER.BASE_LR. A router with few
    # channels learns more slowly: 10 suits one with a few dozen instead of 1500.
    node.ROUTER_MULTIPLIER = 1.0
    # Learning rate of the initial boxes, static or dynamic, as a multiple of SOLVER.BASE_LR. ADAMW moves a coordinate,
    # a share of the image's width or height, by about the learning rate: a short training leaves them near their start.
    node.INIT_BOXES_MULTIPLIER = 1.0
    # Batch size for which learning rate, warm-up, steps, length and periods are written. They are scaled when
    # SOLVER.IMS_PER_BATCH differs; 0: never.
    node.REFERENCE_BATCH_SIZE = 16
    # Layer-wise learning rate decay of plain vision transformers: the rate of each block is multiplied by this number
    # once for every layer above it; 1: no decay.
    node.LAYER_DECAY = 1.0
    # Parameters without weight decay: any of norm, bias, pos_embed (with class tokens and relative positions).
    node.NO_WEIGHT_DECAY = ()
    # Number of parts in which the SOLVER.IMS_PER_BATCH images of an iteration are processed, one after the other,
    # before the optimizer steps: the memory of one part, the gradient of the whole batch.
    node.ACCUMULATE_STEPS = 1
    # Mixed precision (SOLVER.AMP.ENABLED): float16 with a gradient scaler, or bfloat16. On a CPU always bfloat16.
    node.AMP.PRECISION = "float16"
    # Exponential moving average of the weights, which is then evaluated, saved and predicted with. DECAY is the share
    # of the average that an iteration keeps; it starts lower.
    node.EMA = CfgNode({"ENABLED": False, "DECAY": 0.9999})
    # Stop training after this number of evaluations without a gain in TEST.BEST_METRIC; 0: never.
    node.PATIENCE = 0


def _add_evaluation(node: CfgNode) -> None:
    # Pascal VOC's metric, in addition to COCO's: none; voc2007 or voc2012 for all data sets, in the style of that year;
    # auto for VOC data sets only, in the style of their year (2012 for voc:<folder>:<split>).
    node.VOC_METRIC = "auto"
    # Evaluate in mixed precision, also during training; PRECISION as in SOLVER.AMP.PRECISION.
    node.AMP = CfgNode({"ENABLED": False, "PRECISION": "float16"})
    # Metric (task/name) by which the best checkpoint is chosen and kept as model_best.pth; empty: none is kept.
    node.BEST_METRIC = "bbox/AP"
    # Compute the losses in evaluations too, as the task validation.
    node.LOSS = False
