"""What the lazy configs share: the published recipe of Sparse R-CNN, for a batch of 16."""

import torch
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf

from dynamic_sparse_rcnn.data.checks import load_checked_dataset
from dynamic_sparse_rcnn.data.loader import TrainLoader
from dynamic_sparse_rcnn.data.mapper import DetectionMapper

dataloader = OmegaConf.create()
dataloader.train = L(TrainLoader)(
    dataset=L(load_checked_dataset)(name="coco_2017_train", num_classes="${model.head.stages.num_classes}"),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[
            L(T.RandomApply)(
                tfm_or_aug=L(T.AugmentationList)(
                    augs=[
                        L(T.ResizeShortestEdge)(
                            short_edge_length=(400, 500, 600), max_size=5332, sample_style="choice"
                        ),
                        L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
                    ]
                ),
                prob=0.5,
            ),
            L(T.ResizeShortestEdge)(
                short_edge_length=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
                max_size=1333,
                sample_style="choice",
            ),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
        keep_crowd=False,
    ),
    total_batch_size=16,
    seed="${train.seed}",
    num_workers=4,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(load_checked_dataset)(name="coco_2017_val", num_classes="${model.head.stages.num_classes}"),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
        image_format="${...train.mapper.image_format}",
        keep_crowd=False,
    ),
    num_workers=4,
)
dataloader.evaluator = L(COCOEvaluator)(dataset_name="${..test.dataset.name}", tasks=("bbox",))

# All parameters have the weight decay, norms and biases too.
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}"),
    lr=0.000025,
    weight_decay=0.0001,
)


def multi_step(milestones, max_iter):
    """A tenth of the learning rate from each milestone on, after 1000 iterations of linear warm-up from a hundredth."""
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[1.0, 0.1, 0.01], milestones=list(milestones), num_updates=max_iter
        ),
        warmup_length=1000 / max_iter,
        warmup_method="linear",
        warmup_factor=0.01,
    )


lr_multiplier = multi_step((210000, 250000), 270000)

train = OmegaConf.create(
    {
        "output_dir": "./output",
        "init_checkpoint": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
        "max_iter": 270000,
        # Of trainings, and of evaluations. precision: float16 or bfloat16; on the CPU always bfloat16.
        "amp": {"enabled": False, "evaluation": False, "precision": "float16"},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
        "checkpointer": {"period": 5000, "max_to_keep": None},
        "eval_period": 7330,
        "log_period": 20,
        "device": "cuda",
        "seed": 40244023,
        # Of the norm of all gradients together.
        "max_gradient_norm": 1.0,
    }
)
