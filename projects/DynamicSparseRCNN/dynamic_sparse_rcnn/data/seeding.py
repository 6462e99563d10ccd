"""Random numbers that depend on a run's seed and a position in the run, not on what was drawn before."""

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
    """Returns ``seed``, or draws one if it is negative; the same on all ranks, all of which must call this."""
    return seed if seed >= 0 else int(comm.shared_random_seed())


def seed_of_run(seed: int, output_dir: str, resume: bool) -> int:
    """``shared_seed``, but a resumed run keeps the seed that was drawn when it started. All ranks must call this.

    Args:
        seed: the config's.
        output_dir: the folder that holds the run's ``config.yaml``.
        resume: whether the run is resumed.
    """
    saved = Path(output_dir) / "config.yaml"
    if seed < 0 and resume and comm.is_main_process() and saved.is_file():
        config = read_config(str(saved))
        seed = config.SEED if isinstance(config, CfgNode) else config.train.seed
    return shared_seed(comm.all_gather(seed)[0])


def derive_seed(*numbers: int) -> int:
    """Hashes non-negative numbers below 2^32 to a seed in [0, 2^32).

    Trailing zeros do not count. With 32 bits, collisions are to be expected among a million seeds.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy, and PyTorch on the CPU within the context, and restores their states afterwards."""
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
