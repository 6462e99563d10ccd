"""Other ways in which a detector can do the same, to see what they cost; each for as long as its context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from detectron2.structures import ImageList

from dynamic_sparse_rcnn import DynamicConv, SparseRCNN

Way = Callable[[SparseRCNN], AbstractContextManager[None]]


@contextmanager
def unchanged(detector: SparseRCNN) -> Iterator[None]:
    """As it is."""
    yield


def activations_kept(detector: SparseRCNN) -> AbstractContextManager[None]:
    """The dynamic convolutions keep what their last norm and activation give, as on a CPU."""
    return _recomputing_on(detector, frozenset())


def activations_recomputed(detector: SparseRCNN) -> AbstractContextManager[None]:
    """The dynamic convolutions compute that again in the backward pass, as on a GPU."""
    return _recomputing_on(detector, frozenset({"cpu", "cuda"}))


@contextmanager
def _recomputing_on(detector: SparseRCNN, devices: frozenset[str]) -> Iterator[None]:
    convolutions = [module for module in detector.modules() if isinstance(module, DynamicConv)]
    for convolution in convolutions:
        convolution.recomputing_devices = devices
    yield
    for convolution in convolutions:
        del convolution.recomputing_devices  # the instance's: the class has its own


@contextmanager
def grad_checkpointing(detector: SparseRCNN) -> Iterator[None]:
    """The stages are run again in the backward pass."""
    detector.head.grad_checkpointing = True
    yield
    detector.head.grad_checkpointing = False


@contextmanager
def images_channels_last(detector: SparseRCNN) -> Iterator[None]:
    """The backbone gets images whose channels lie side by side in memory, and gives such maps."""
    preprocess = detector.preprocess_image

    def preprocess_channels_last(
        batched_inputs: list[dict[str, Any]], pad_to: tuple[int, int] | None = None
    ) -> ImageList:
        images = preprocess(batched_inputs, pad_to)
        return ImageList(images.tensor.contiguous(memory_format=torch.channels_last), images.image_sizes)

    detector.preprocess_image = preprocess_channels_last  # type: ignore[method-assign]
    yield
    del detector.preprocess_image  # the instance's: the class has its own
