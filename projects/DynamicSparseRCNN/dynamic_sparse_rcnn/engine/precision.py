"""Mixed precision: which of the two half precisions is used, and where."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch

logger = logging.getLogger(__name__)

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def autocast_dtype(precision: str, device: torch.device | str, key: str = "SOLVER.AMP.PRECISION") -> torch.dtype:
    """The type that matrix products and convolutions are computed in.

    Args:
        precision: ``float16`` or ``bfloat16``.
        device: on the CPU the type is always bfloat16, and the log says so: float16 is slow there.
        key: of the config, for the error.

    Raises:
        ValueError: ``precision`` has another value.
    """
    if precision not in _DTYPES:
        raise ValueError(f"{key} is {precision!r}: use {' or '.join(_DTYPES)}")
    dtype = _DTYPES[precision]
    if torch.device(device).type == "cpu" and dtype == torch.float16:
        logger.info(f"{key} is float16; on the CPU mixed precision is bfloat16")
        return torch.bfloat16
    return dtype


def autocast(dtype: torch.dtype | None, device: torch.device | str) -> AbstractContextManager:
    """The context that a detector runs in; without ``dtype`` a context that changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)
