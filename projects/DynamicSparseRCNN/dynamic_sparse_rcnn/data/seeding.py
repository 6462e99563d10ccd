"""Random numbers that depend on a run's seed and a place in it, not on what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config_reading import read_config


def shared_seed(seed: int) -> int:
    """``seed``, or where it is negative one that is drawn, the same on all ranks. To be called by all of them."""
    return seed if seed >= 0 else int(comm.shared_random_seed())


def seed_of_run(seed: int, output_dir: str, resume: bool) -> int:
    """``shared_seed``, but a run that goes on keeps the one that was drawn for it. To be called by all ranks.

    Args:
        seed: of the config.
        output_dir: where the run has its ``config.yaml``.
        resume: whether it goes on.
    """
    saved = Path(output_dir) / "config.yaml"
    if seed < 0 and resume and comm.is_main_process() and saved.is_file():
        config = read_config(str(saved))
        seed = config.SEED if isinstance(config, CfgNode) else config.train.seed
    return shared_seed(comm.all_gather(seed)[0])


def derive_seed(*numbers: int) -> int:
    """A seed in [0, 2^32) that follows from non-negative numbers below 2^32, and has nothing of their regularity.

    Zeros at their end do not count, and with 32 bits some of a million others have the same seed.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn within (of Python, NumPy, and PyTorch on the CPU) follows from ``seed``; later draws do not."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
