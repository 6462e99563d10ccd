"""The configuration keys that this project adds to detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_dynamic_sparse_rcnn_config(cfg: CfgNode) -> None:
    """Adds the keys of Sparse R-CNN and ours. Public Sparse R-CNN yaml files load as they are."""
    cfg.MODEL.SparseRCNN = CfgNode()
    _add_model(cfg.MODEL.SparseRCNN)
    _add_learning(cfg.MODEL.SparseRCNN)
    # Of OptimalTransportMatcher and DLACriterion.
    cfg.MODEL.SparseRCNN.DLA = CfgNode()
    _add_dynamic_label_assignment(cfg.MODEL.SparseRCNN.DLA)
    _add_solver(cfg.SOLVER)
    _add_evaluation(cfg.TEST)
    # File (*.yaml or *.json) of an Albumentations pipeline that goes before the other augmentations of the training.
    cfg.INPUT.ALBUMENTATIONS = ""


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

    # IoU of the class-wise NMS on the detections; 1: none, as one-to-one matching needs none.
    node.NMS_THRESHOLD = 1.0


def _add_learning(node: CfgNode) -> None:
    # Chosen from CRITERION_REGISTRY and MATCHER_REGISTRY.
    node.CRITERION = "SetCriterion"
    node.MATCHER = "HungarianMatcher"
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
    dla.SINKHORN_EPS = 0.1
    dla.SINKHORN_ITERS = 50
    # What the losses of a stage are divided by: its positives, or the number of ground truths (num_gt).
    dla.NORMALIZER = "positives"


def _add_solver(node: CfgNode) -> None:
    # ADAMW or SGD.
    node.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone, in units of BASE_LR.
    node.BACKBONE_MULTIPLIER = 1.0
    # The batch size for which learning rate, warm-up, steps, length and periods are written. With another
    # IMS_PER_BATCH all are scaled to it; 0: never.
    node.REFERENCE_BATCH_SIZE = 16
    # In how many parts the IMS_PER_BATCH images of an iteration are run, one after the other, before the optimiser's
    # step: memory for one part, the gradient of all.
    node.ACCUMULATE_STEPS = 1


def _add_evaluation(node: CfgNode) -> None:
    # Pascal VOC's metric, beside COCO's: none; voc2007 or voc2012, for all data sets in the style of that year; or
    # auto, for VOC's own alone, in the style of their year (voc:<folder>:<split>: 2012).
    node.VOC_METRIC = "auto"
