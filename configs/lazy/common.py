"""What the lazy configs share: the published recipe of Sparse R-CNN, for a batch of 16."""

from collections.abc import Sequence

import torch
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig, OmegaConf

from dynamic_sparse_rcnn.data.checks import report_dataset, report_training_sets
from dynamic_sparse_rcnn.data.loader import TrainLoader
from dynamic_sparse_rcnn.data.mapper import DetectionMapper
from dynamic_sparse_rcnn.engine.evaluation import build_evaluator

dataloader = OmegaConf.create()
dataloader.train = L(TrainLoader)(
    dataset=L(report_training_sets)(
        name="coco_2017_train",
        num_classes="${model.head.stages.num_classes}",
        num_proposals="${model.proposal_generator.num_proposals}",
    ),
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
    dataset=L(report_dataset)(
        name="coco_2017_val",
        num_classes="${model.head.stages.num_classes}",
        num_proposals="${model.proposal_generator.num_proposals}",
        is_train=False,
    ),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
        image_format="${...train.mapper.image_format}",
        keep_crowd="${...train.mapper.keep_crowd}",
    ),
    num_workers=4,
)
dataloader.evaluator = L(build_evaluator)(
    dataset_name="${..test.dataset.name}",
    output_folder="${train.output_dir}/inference",
    # Beside COCO's: none; voc2007 or voc2012; or auto, for VOC's own data sets.
    voc_metric="auto",
)

# All parameters have the weight decay, norms and biases too.
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}"),
    lr=0.000025,
    weight_decay=0.0001,
)


def multi_step(milestones: Sequence[int], max_iter: int) -> DictConfig:
    """A tenth of the learning rate from each milestone on, after 1000 iterations of linear warm-up from a hundredth."""
    schedule: DictConfig = L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[1.0, 0.1, 0.01], milestones=list(milestones), num_updates=max_iter
        ),
        warmup_length=1000 / max_iter,
        warmup_method="linear",
        warmup_factor=0.01,
    )
    return schedule


lr_multiplier = multi_step((210000, 250000), 270000)

train = OmegaConf.create(
    {
        "output_dir": "./output",
        "init_checkpoint": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
        "max_iter": 270000,
        # The batch size that learning rate, length and periods are written for; 0: they are never scaled.
        "reference_batch_size": 16,
        # In how many parts a batch is run before the optimizer's step.
        "accumulate_steps": 1,
        # Of the norm of all gradients together.
        "max_gradient_norm": 1.0,
        # Of trainings, and of evaluations. precision: float16 or bfloat16; on the CPU always bfloat16.
        "amp": {"enabled": False, "evaluation": False, "precision": "float16"},
        # Moving average of the weights, which is evaluated and saved.
        "ema": {"enabled": False, "decay": 0.9999},
        # Options of DistributedDataParallel.
        "ddp": {},
        "checkpointer": {"period": 5000, "max_to_keep": None},
        "eval_period": 7330,
        # Batches that batch norms get their statistics of before an evaluation; 0: they keep theirs.
        "precise_bn_iters": 0,
        # Whether evaluations compute the losses too.
        "test_loss": False,
        # The metric whose best evaluation is kept as model_best.pth, and the number of evaluations without gain after
        # which the training stops; 0: it never does.
        "best_metric": "bbox/AP",
        "patience": 0,
        "log_period": 20,
        # Beside the terminal and metrics.json: any of tensorboard, wandb, mlflow.
        "loggers": ["tensorboard"],
        "device": "cuda",
        "seed": 40244023,
    }
)
