"""The public names of the package. Importing this registers the project's parts with detectron2."""

from .checkpoints import read_checkpoint, write_checkpoint
from .config import add_dynamic_sparse_rcnn_config, resolve_config
from .modeling.assignment.costs import MatchCostModel
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
from .modeling.losses.criterion import CRITERION_REGISTRY, SetCriterion, build_criterion
from .modeling.proposals.dynamic import DynamicProposalGenerator, TemperatureSchedule, feature_levels
from .modeling.proposals.learned import LearnedProposalGenerator
from .modeling.proposals.router import ExpertRouter
from .modeling.structures import BACKGROUND, Assignment, BatchedTargets, MatchCosts, StagePredictions
from .modeling.test_time_augmentation import DetectorWithTTA
from .prediction import Prediction, Predictor

__all__ = [
    "BACKGROUND",
    "CRITERION_REGISTRY",
    "MATCHER_REGISTRY",
    "Assignment",
    "BatchedTargets",
    "DetectorWithTTA",
    "DynamicConv",
    "DynamicHead",
    "DynamicProposalGenerator",
    "DynamicSparseRCNN",
    "DynamicStage",
    "ExpertRouter",
    "HungarianMatcher",
    "LearnedProposalGenerator",
    "MatchCostModel",
    "MatchCosts",
    "Matcher",
    "OptimalTransportMatcher",
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
    "write_checkpoint",
]
