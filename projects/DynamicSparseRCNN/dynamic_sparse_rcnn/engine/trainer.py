"""The trainer of yaml configs, which users of detectron2 subclass."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn, optim
from torch.utils.data import DataLoader

from ..data.checks import load_checked_dataset
from ..data.loader import TrainLoader
from ..data.mapper import DetectionMapper
from . import from_yaml, solver
from .evaluation import build_evaluator, evaluate, inference_folder, with_diagnostics
from .run import Results, TrainingRun


class Trainer(TrainingRun):
    """detectron2's ``DefaultTrainer`` with this project's parts and loop.

    The class methods make the parts of a run from its config; subclasses override them, as those of
    ``DefaultTrainer``. Data sets named by their files need no registration.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Builds all that a training needs; all processes of a run call this."""
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        super().__init__(from_yaml.build_parts(self.cfg, type(self)))

    def train(self) -> Results:
        """Runs the training, verifies ``TEST.EXPECTED_RESULTS``, and gives the results of the last evaluation."""
        results = super().train()
        if comm.is_main_process():
            verify_results(self.cfg, results)
        return results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of a config, logged as detectron2 does but at level ``DEBUG``: ``log.txt`` alone shows it."""
        model = build_model(cfg)
        logging.getLogger("detectron2").debug(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> optim.Optimizer:
        """See :func:`.solver.build_optimizer`."""
        return solver.build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """See :func:`.from_yaml.build_checked_train_loader`."""
        return from_yaml.build_checked_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """The checked images of one data set, each once."""
        return build_detection_test_loader(
            load_checked_dataset(dataset_name, num_classes=cfg.MODEL.SparseRCNN.NUM_CLASSES),
            mapper=DetectionMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """See :func:`.evaluation.build_evaluator`; results go to ``output_folder`` (``<OUTPUT_DIR>/inference``)."""
        folder = output_folder or inference_folder(cfg.OUTPUT_DIR, dataset_name, cfg.DATASETS.TEST)
        return build_evaluator(dataset_name, folder, cfg.TEST.VOC_METRIC)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None
    ) -> Results:
        """Evaluates a model on all ``DATASETS.TEST``; see :func:`.evaluation.evaluate`.

        Args:
            cfg: of the run.
            model: perhaps distributed.
            evaluators: one a test set; by default those of :meth:`build_evaluator`, with what only the inside of a
                detector tells.
        """
        names = cfg.DATASETS.TEST
        given = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        if given is not None and len(given) != len(names):
            raise ValueError(f"DATASETS.TEST has {len(names)} sets, but {len(given)} evaluators")
        test_sets = (
            (
                name,
                cls.build_test_loader(cfg, name),
                given[i] if given else with_diagnostics(cls.build_evaluator(cfg, name), model, loss=cfg.TEST.LOSS),
            )
            for i, name in enumerate(names)
        )
        return evaluate(model, test_sets, from_yaml.evaluation_dtype(cfg))
