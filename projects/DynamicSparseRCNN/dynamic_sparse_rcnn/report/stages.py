"""AP after each stage of the head, from one pass of a run's detector over its test sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn

from ..checkpoints.runs import BEST, BEST_DETECTIONS, LAST_DETECTIONS
from ..data.ground_truth import ensure_coco_json
from ..data.mapper import DetectionMapper
from ..engine.evaluation import inference_folder
from ..file_io import write_json
from ..modeling.structures import ModelInput, StagePredictions
from ..prediction.loading import load_detector
from .recorded import STAGES, read_run


def evaluate_run(run_folder: str | Path, trust: bool = False) -> None:
    """Evaluates the best or last checkpoint of a run on its test sets, after every stage.

    Writes the detections of the last stage where a training keeps them, and the metrics of all stages beside them.

    Args:
        run_folder: of a run from either kind of config.
        trust: whether a pickled checkpoint may run code.

    Raises:
        FileNotFoundError: the run has no checkpoint or no config.
        ValueError: its config names no test set, or its detector has no stages.
    """
    loaded = load_detector(None, str(run_folder), None, trust)
    if not (hasattr(loaded.model, "head") and hasattr(loaded.model, "detect")):
        raise ValueError(f"The detector of {run_folder} has no stages as SparseRCNN has: leave out --evaluate")
    names = read_run(run_folder).test_sets
    if not names:
        raise ValueError(f"The config of {run_folder} names no test set: leave out --evaluate, and use dsrcnn eval")
    mapper = DetectionMapper(
        is_train=False, keep_crowd=False, augmentations=loaded.augmentations.augs, image_format=loaded.image_format
    )
    kind = BEST_DETECTIONS if (Path(run_folder) / BEST).is_file() else LAST_DETECTIONS
    for name in names:
        folder = inference_folder(str(run_folder), name, names, kind)
        ensure_coco_json(name, folder)
        loader = build_detection_test_loader(DatasetCatalog.get(name), mapper=mapper)
        evaluator = StageEvaluator(loaded.model, partial(COCOEvaluator, name), folder)
        stages = inference_on_dataset(loaded.model, loader, evaluator)["stages"]
        write_json([stage["bbox"] for stage in stages], Path(folder) / STAGES)


class StageEvaluator(DatasetEvaluator):
    """Evaluates the detections after every stage of a head, as ``stages``: a list of results."""

    def __init__(
        self, detector: nn.Module, build: Callable[..., DatasetEvaluator], output_folder: str | None = None
    ) -> None:
        """
        Args:
            detector: with ``head`` and ``detect``, as :class:`.SparseRCNN`; not distributed.
            build: makes an evaluator; its argument ``output_dir`` is a folder, or None.
            output_folder: of the last stage's detections.
        """
        self._detector: Any = detector
        self._build = build
        self._output_folder = output_folder

    def reset(self) -> None:
        """Forgets all images, and hooks into the head."""
        self._evaluators: list[DatasetEvaluator] = []
        self._hook = self._detector.head.register_forward_hook(self._keep)

    def process(self, inputs: list[ModelInput], outputs: list[dict[str, Instances]]) -> None:
        """Takes the detections after every stage; those after the last are the outputs."""
        if not self._evaluators:
            self._evaluators = [self._build(output_dir=None) for _ in self._predictions.logits[1:]]
            self._evaluators.append(self._build(output_dir=self._output_folder))
            for evaluator in self._evaluators:
                evaluator.reset()
        sizes = [tuple(one["image"].shape[-2:]) for one in inputs]
        for stage, evaluator in enumerate(self._evaluators[:-1]):
            detections = self._detector.detect(self._predictions.stage(stage), sizes)
            pairs = zip(detections, inputs, strict=True)
            scaled = [{"instances": detector_postprocess(x, one["height"], one["width"])} for x, one in pairs]
            evaluator.process(inputs, scaled)
        self._evaluators[-1].process(inputs, outputs)

    def evaluate(self) -> dict[str, object]:
        """The results of all stages."""
        self._hook.remove()
        return {"stages": [evaluator.evaluate() for evaluator in self._evaluators]}

    def _keep(self, head: nn.Module, arguments: object, predictions: StagePredictions) -> None:
        self._predictions = predictions
