"""What the sums of a criterion are divided by, for a batch that is learned at once or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.utils import comm
from torch import Tensor


class BatchNormalizer:
    """The number of what is learned in a batch, on an average rank, at least 1.

    A batch learned in parts has one such number for all of them: it is either known beforehand, or found by running
    all parts within :meth:`counting` first. Then each part is run within :meth:`fixed`.
    """

    def __init__(self) -> None:
        self._counts: list[Tensor] | None = None
        self._fixed: Tensor | None = None

    def __call__(self, count: Tensor) -> Tensor:
        """
        Args:
            count: (S,) float32 of the images at hand; not changed.

        Returns:
            (S,) or (1,) float32 divisor.
        """
        if self._fixed is not None:
            return self._fixed
        if self._counts is not None:
            self._counts.append(count.detach())
            return count.clamp(min=1)  # of losses that nobody uses
        return average_over_ranks(count)

    @contextmanager
    def counting(self) -> Iterator[list[Tensor]]:
        """Collects the counts of what is run within, into the list that it gives."""
        self._counts = []
        try:
            yield self._counts
        finally:
            self._counts = None

    @contextmanager
    def fixed(self, divisor: Tensor) -> Iterator[None]:
        """Divides what is run within by ``divisor``, whatever it counts."""
        self._fixed = divisor
        try:
            yield
        finally:
            self._fixed = None


def average_over_ranks(count: Tensor) -> Tensor:
    """``count`` of all ranks together, divided by their number, at least 1. To be called by all ranks."""
    number = count.clone()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(number)
    return (number / comm.get_world_size()).clamp(min=1)
