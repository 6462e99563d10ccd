"""Hooks of a training."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from ..data.seeding import derive_seed


class IterationSeed(HookBase):
    """What an iteration draws (dropout, stochastic depth) follows from the seed, the iteration and the rank alone.

    A run that goes on then draws what it would have drawn without the interruption.
    """

    def __init__(self, seed: int) -> None:
        """Args: seed, not negative, the same on all ranks."""
        self._seed = seed

    def before_step(self) -> None:
        """Seeds PyTorch's generators of all devices."""
        torch.manual_seed(derive_seed(self._seed, self.trainer.iter, comm.get_rank()))


class EvalHook(hooks.EvalHook):
    """detectron2's, but for the evaluation after an error in the last iteration.

    Other processes would not take part in it, and the one with the error wait for them.
    """

    def after_train(self) -> None:
        """Evaluates once the training is done."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()
