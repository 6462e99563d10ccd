"""Entropic optimal transport for many small problems at once. Knows nothing of boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TransportPlan:
    """How much each row sends to each column.

    Attributes:
        plan: (N, R, C) float32, not negative; its columns sum to the column masses.
        residual: (N,) float32, the largest difference between a row's sum and its mass: 0 when converged.
    """

    plan: Tensor
    residual: Tensor


@torch.no_grad()
def sinkhorn(cost: Tensor, row_mass: Tensor, column_mass: Tensor, *, epsilon: float, num_iters: int) -> TransportPlan:
    """Sinkhorn's iteration (Cuturi, arXiv 1306.0895) in the log domain, for N problems at once.

    Always runs ``num_iters`` iterations: whether all problems have converged is known to the device alone.

    Args:
        cost: (N, R, C), finite.
        row_mass: (N, R), not negative, of the same sum as ``column_mass``. Rows of mass 0 send exactly 0.
        column_mass: (N, C), positive.
        epsilon: weight of the entropy, in units of the cost.
        num_iters: iterations, each of which matches the rows and then the columns.
    """
    if epsilon <= 0 or num_iters < 1:
        raise ValueError(f"epsilon must be positive and num_iters at least 1, got {epsilon} and {num_iters}")
    with torch.autocast(cost.device.type, enabled=False):
        kernel = cost.float() / -epsilon
        log_rows, log_columns = row_mass.float().log(), column_mass.float().log()
        # Columns first: a constant in all costs of a column is gone before it can slow the convergence.
        columns = log_columns - (kernel + (row_mass > 0).float().log()[:, :, None]).logsumexp(1)
        for _ in range(num_iters):
            rows = log_rows - (kernel + columns[:, None]).logsumexp(2)
            columns = log_columns - (kernel + rows[:, :, None]).logsumexp(1)
        plan = (kernel + rows[:, :, None] + columns[:, None]).exp()
    return TransportPlan(plan, (plan.sum(2) - row_mass).abs().amax(1))
