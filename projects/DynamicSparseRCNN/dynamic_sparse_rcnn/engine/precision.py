"""Mixed precision: which of the two half precisions, and the training loop for it."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import Tensor, nn

from .accumulation import AccumulatingTrainer

logger = logging.getLogger(__name__)

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def autocast_dtype(precision: str, device: torch.device | str, key: str = "SOLVER.AMP.PRECISION") -> torch.dtype:
    """The type that matrix products and convolutions are computed in.

    Args:
        precision: ``float16`` or ``bfloat16``.
        device: on the CPU it is bfloat16 in any case, and the log says so: float16 is slow there.
        key: of the config, for the error.

    Raises:
        ValueError: if ``precision`` has another value.
    """
    _require_known(precision, key)
    dtype = _DTYPES[precision]
    if torch.device(device).type == "cpu" and dtype == torch.float16:
        logger.info(f"{key} is float16; on the CPU mixed precision is bfloat16")
        return torch.bfloat16
    return dtype


def check_precision(cfg: CfgNode) -> None:
    """Raises ValueError if a config asks for mixed precision, in training or at evaluation, that there is not."""
    for section in ("SOLVER", "TEST"):
        if cfg[section].AMP.ENABLED:
            _require_known(cfg[section].AMP.PRECISION, f"{section}.AMP.PRECISION")


def _require_known(precision: str, key: str) -> None:
    if precision not in _DTYPES:
        raise ValueError(f"{key} is {precision!r}: use {' or '.join(_DTYPES)}")


def autocast(dtype: torch.dtype | None, device: torch.device | str) -> AbstractContextManager:
    """What a detector is run in for mixed precision; without ``dtype`` nothing."""
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)


def evaluation_autocast(cfg: CfgNode) -> AbstractContextManager:
    """What a config's evaluations are run in."""
    amp, device = cfg.TEST.AMP, cfg.MODEL.DEVICE
    return autocast(autocast_dtype(amp.PRECISION, device, "TEST.AMP.PRECISION") if amp.ENABLED else None, device)


def build_training_loop(
    model: nn.Module,
    data_loader: Any,
    optimizer: torch.optim.Optimizer,
    *,
    dtype: torch.dtype | None = None,
    steps: int = 1,
) -> SimpleTrainer:
    """detectron2's ``SimpleTrainer``, or the one for mixed precision or for a batch in parts.

    Args:
        model: a detector, perhaps distributed.
        data_loader: gives batches.
        optimizer: gets one step an iteration.
        dtype: of mixed precision (:func:`autocast_dtype`); None: without it. float16 has a gradient scaler.
        steps: number of parts of a batch.
    """
    scaler = torch.amp.GradScaler("cuda") if dtype == torch.float16 else None
    if steps > 1:
        return AccumulatingTrainer(model, data_loader, optimizer, steps=steps, autocast_dtype=dtype, grad_scaler=scaler)
    if dtype is None:
        return SimpleTrainer(model, data_loader, optimizer)
    if scaler is not None:
        return Float16Trainer(model, data_loader, optimizer, grad_scaler=scaler)
    return BFloat16Trainer(model, data_loader, optimizer)


class Float16Trainer(AMPTrainer):
    """detectron2's, also for a run that goes on from a checkpoint in another precision, which has no scaler."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of ``state_dict``; what it lacks is as at the start."""
        super().load_state_dict({"grad_scaler": self.grad_scaler.state_dict()} | state_dict)


class BFloat16Trainer(SimpleTrainer):
    """Mixed precision that needs no gradient scaler: bfloat16, on any device. (detectron2 0.6 has float16 alone.)"""

    def run_step(self) -> None:
        """One step of ``SimpleTrainer``, its forward pass under autocast."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with autocast(torch.bfloat16, next(self.model.parameters()).device):
            losses: dict[str, Tensor] = self.model(batch)
            total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        if hasattr(self, "after_backward"):  # hooks', of which detectron2 0.6 has none
            self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()
