"""Sparse R-CNN, as configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml."""

import math

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler

from dynamic_sparse_rcnn import (
    ClassCost,
    ClassLoss,
    DynamicHead,
    GIoUCost,
    GIoULoss,
    HungarianMatcher,
    L1Cost,
    L1Loss,
    LearnedProposalGenerator,
    MatchCostModel,
    SetCriterion,
    SparseRCNN,
    build_stages,
)

from .common import dataloader, lr_multiplier, optimizer, train

cost_model = L(MatchCostModel)(
    terms=[L(ClassCost)(weight=2.0, alpha=0.25, gamma=2.0), L(L1Cost)(weight=5.0), L(GIoUCost)(weight=2.0)]
)
losses = [L(ClassLoss)(weight=2.0, alpha=0.25, gamma=2.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)]

model = L(SparseRCNN)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
            out_features=["res2", "res3", "res4", "res5"],
            freeze_at=2,
        ),
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=256,
        top_block=L(LastLevelMaxPool)(),
    ),
    proposal_generator=L(LearnedProposalGenerator)(num_proposals=300, channels=256),
    head=L(DynamicHead)(
        in_features=["p2", "p3", "p4", "p5"],
        pooler=L(ROIPooler)(
            output_size=7, scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=2, pooler_type="ROIAlignV2"
        ),
        stages=L(build_stages)(
            num_stages=6,
            num_classes=80,
            channels=256,
            num_attention_heads=8,
            feedforward_channels=2048,
            dynamic_channels=64,
            pooler_resolution=7,
            num_class_layers=1,
            num_box_layers=3,
            dropout=0.0,
            activation="relu",
        ),
        box_transform=L(Box2BoxTransform)(weights=[2.0, 2.0, 1.0, 1.0], scale_clamp=math.log(100000 / 16)),
        prior_probability=0.01,
        grad_checkpointing=False,
    ),
    criterion=L(SetCriterion)(
        cost_model=cost_model, matcher=L(HungarianMatcher)(), losses=losses, deep_supervision=True
    ),
    num_detections=100,
    nms_threshold=None,  # what the matcher needs
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
)
