"""Checks of a batch: ground truths that cannot be learned, and predictions that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.structures import Instances
from detectron2.utils.logger import log_every_n_seconds
from torch import Tensor, cat

from .events import current_event_storage
from .structures import ModelInput, StagePredictions


def find_finite(predictions: StagePredictions) -> Tensor:
    """(S, B) bool: whether all logits and box areas of an image are finite."""
    # If this area is finite, so are those of the box and of its hull with any ground truth.
    reach = 2 * predictions.boxes.detach().abs().unflatten(-1, (2, 2)).amax(-2)
    area = reach[..., :1] * reach[..., 1:]
    return cat([predictions.logits.detach(), area], dim=-1).isfinite().flatten(2).all(-1)


def require_finite(finite: Tensor, batched_inputs: Sequence[ModelInput]) -> None:
    """Raises an error unless all predictions are finite.

    Args:
        finite: the result of :func:`find_finite`.
        batched_inputs: the images of the predictions.

    Raises:
        FloatingPointError: names the first stage, the images and the iteration.
    """
    # This waits for the device, as RoI pooling (once a level) and Hungarian matching do. Without it, NaN would
    # silently become an AP of 0.
    if finite.all():
        return
    storage = current_event_storage()
    stage = int((~finite).any(1).nonzero()[0])
    images = [_name(inputs, i) for i, inputs in enumerate(batched_inputs) if not finite[stage, i]]
    raise FloatingPointError(
        f"NaN or infinite predictions from stage {stage + 1} of {len(finite)} on, at iteration "
        f"{storage.iter if storage else '(no training loop)'}, image(s) {', '.join(images)}. "
        "Lower SOLVER.BASE_LR, lengthen the warm-up, or, under mixed precision, try without "
        "SOLVER.AMP.ENABLED; then look at these images."
    )


def check_classes(batched_inputs: Sequence[ModelInput], num_classes: int) -> None:
    """Checks the classes of ground truths on the host, where mappers leave them. On a GPU, checking would wait.

    Raises:
        ValueError: A class is not in [0, ``num_classes``); names the image.
    """
    for i, inputs in enumerate(batched_inputs):
        classes = inputs["instances"].gt_classes
        if classes.device.type == "cpu" and ((classes < 0) | (classes >= num_classes)).any():
            raise ValueError(
                f"image {_name(inputs, i)} has ground truths of the classes {classes.unique().tolist()}, but "
                f"MODEL.SparseRCNN.NUM_CLASSES (of a lazy config model.head.stages.num_classes) is {num_classes}: "
                "correct one of them"
            )


def _name(inputs: ModelInput, index: int) -> str:
    return str(inputs.get("file_name", f"number {index} of the batch"))


def report_excess_ground_truths(instances: Sequence[Instances], num_proposals: int) -> None:
    """Logs how many ground truths of a batch have no proposal left, and warns if there are any."""
    crowded = [x for x in instances if len(x) > num_proposals]  # rare: only these are counted on the device
    excess = sum(max(0, int(_is_target(x).sum()) - num_proposals) for x in crowded)
    storage = current_event_storage()
    if storage is not None:
        storage.put_scalar("ground_truths_without_proposal", excess)
    if excess:
        log_every_n_seconds(
            logging.WARNING,
            f"{excess} ground truths of this batch have no proposal to learn them: an image has more than "
            f"MODEL.SparseRCNN.NUM_PROPOSALS {num_proposals}. Raise it.",
            n=60,
        )


def _is_target(instances: Instances) -> Tensor:
    """(N,) bool: boxes without extent and crowd regions are no targets."""
    nonempty: Tensor = instances.gt_boxes.nonempty()
    return nonempty & ~instances.gt_is_crowd if instances.has("gt_is_crowd") else nonempty
