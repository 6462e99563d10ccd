"""The public names of the package. Importing this registers the project's parts with detectron2."""

from .checkpoints import read_checkpoint, write_checkpoint
from .config import add_dynamic_sparse_rcnn_config, resolve_config
from .modeling.assignment.costs import COST_REGISTRY, ClassCost, CostTerm, GIoUCost, L1Cost, MatchCostModel, Pairs
from .modeling.assignment.matchers import (
    MATCHER_REGISTRY,
    HungarianMatcher,
    Matcher,
    OptimalTransportMatcher,
    build_matcher,
)
from .modeling.assignment.units import UnitSchedule
from .modeling.backbones import build_timm_fpn_backbone, build_vit_sfp_backbone
from .modeling.detector import DynamicSparseRCNN, SparseRCNN
from .modeling.head.head import DynamicHead
from .modeling.head.interaction import DynamicConv
from .modeling.head.stage import DynamicStage, build_stages
from .modeling.losses.criterion import CRITERION_REGISTRY, SetCriterion, build_criterion, start_criterion
from .modeling.losses.terms import LOSS_REGISTRY, ClassLoss, GIoULoss, L1Loss, LossTerm, Matched
from .modeling.proposals.dynamic import DynamicProposalGenerator, TemperatureSchedule, feature_levels
from .modeling.proposals.learned import LearnedProposalGenerator
from .modeling.proposals.router import ExpertRouter
from .modeling.structures import BACKGROUND, Assignment, BatchedTargets, MatchCosts, StagePredictions
from .modeling.test_time_augmentation import DetectorWithTTA
from .prediction import Prediction, Predictor

__all__ = [
    "BACKGROUND",
    "COST_REGISTRY",
    "CRITERION_REGISTRY",
    "LOSS_REGISTRY",
    "MATCHER_REGISTRY",
    "Assignment",
    "BatchedTargets",
    "ClassCost",
    "ClassLoss",
    "CostTerm",
    "DetectorWithTTA",
    "DynamicConv",
    "DynamicHead",
    "DynamicProposalGenerator",
    "DynamicSparseRCNN",
    "DynamicStage",
    "ExpertRouter",
    "GIoUCost",
    "GIoULoss",
    "HungarianMatcher",
    "L1Cost",
    "L1Loss",
    "LearnedProposalGenerator",
    "LossTerm",
    "MatchCostModel",
    "MatchCosts",
    "Matched",
    "Matcher",
    "OptimalTransportMatcher",
    "Pairs",
    "Prediction",
    "Predictor",
    "SetCriterion",
    "SparseRCNN",
    "StagePredictions",
    "TemperatureSchedule",
    "UnitSchedule",
    "add_dynamic_sparse_rcnn_config",
    "build_criterion",
    "build_matcher",
    "build_stages",
    "build_timm_fpn_backbone",
    "build_vit_sfp_backbone",
    "feature_levels",
    "read_checkpoint",
    "resolve_config",
    "start_criterion",
    "write_checkpoint",
]
