"""Other ways in which a detector can do the same, to see what they cost; each for as long as its context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

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
