"""Dynamic Sparse R-CNN, as configs/coco/dynamic_sparse_rcnn_R_50_FPN_300pro_3x.yaml."""

from detectron2.config import LazyCall as L

from dynamic_sparse_rcnn import (
    DynamicProposalGenerator,
    DynamicSparseRCNN,
    OptimalTransportMatcher,
    TemperatureSchedule,
    UnitSchedule,
    feature_levels,
)

from .common import dataloader, multi_step, optimizer, train
from .sparse_rcnn_R_50_FPN_300pro_3x import model

train.max_iter = 263880
lr_multiplier = multi_step((197910, 241890), train.max_iter)

model._target_ = DynamicSparseRCNN
model.proposal_generator = L(DynamicProposalGenerator)(
    num_proposals=300,
    channels=256,
    init_boxes="image",
    num_experts=4,
    expert_init=0.5,
    levels=L(feature_levels)(names=["p2", "p3", "p4", "p5"], strides=[4, 8, 16, 32], channels=256),
    hidden_channels=1500,
    pool_size=30,
    # num_iters 0: 10/36 of max_iter, which follows train.max_iter.
    temperature=L(TemperatureSchedule.of_training)(start=30.0, end=1.0, num_iters=0, max_iter=train.max_iter),
)
model.criterion.matcher = L(OptimalTransportMatcher)(
    schedule=L(UnitSchedule)(fixed_k=0, top_q=8, unit_step=0.5, max_positive_ratio=0.8),
    solver="sinkhorn",
    epsilon=0.05,
    num_iters=100,
)
