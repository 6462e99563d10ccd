"""Entropic optimal transport for many small problems at once. Knows nothing of boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Between two looks at the potentials: more would leave the range of float32 in the worst case.
_ITERATIONS_A_BLOCK = 10
# Smaller logarithms add nothing in float32, and the exponentials of the smallest are denormal, which CPUs
# compute many times slower.
_LEAST_LOG = -60.0


@dataclass(frozen=True)
class TransportPlan:
    """How much each row sends to each column.

    Attributes:
        plan: (N, R, C) float32, not negative; its columns sum to the column masses.
        residual: (N,) float32, the largest difference between a row's or column's sum and its mass: 0 when
            converged.
    """

    plan: Tensor
    residual: Tensor


@torch.no_grad()
def sinkhorn(cost: Tensor, row_mass: Tensor, column_mass: Tensor, *, epsilon: float, num_iters: int) -> TransportPlan:
    """Sinkhorn's iteration (Cuturi, arXiv 1306.0895) for N problems at once, stabilized in the log domain.

    Potentials are kept as logarithms: blocks of iterations scale a plan made from them (as Schmitzer,
    arXiv 1610.06519), which takes one exponential a block instead of two an iteration.

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
        row_mass, column_mass = row_mass.float(), column_mass.float()
        # A constant in all costs of a column changes no plan: without it, float32 is left for the differences.
        cost = cost.float()
        least = cost.masked_fill(row_mass[:, :, None] == 0, torch.inf).amin(1, keepdim=True)
        kernel = (cost - least) / -epsilon
        rows, columns = _first_potentials(kernel, row_mass, column_mass)
        for done in range(0, num_iters, _ITERATIONS_A_BLOCK):
            number = min(_ITERATIONS_A_BLOCK, num_iters - done)
            row_scale, column_scale = _scale(_plan(kernel, rows, columns), row_mass, column_mass, number)
            rows, columns = rows + row_scale.log(), columns + column_scale.log()
        plan = _plan(kernel, rows, columns)
    row_residual, column_residual = (plan.sum(2) - row_mass).abs(), (plan.sum(1) - column_mass).abs()
    return TransportPlan(plan, torch.cat([row_residual, column_residual], dim=1).amax(1))


def _first_potentials(kernel: Tensor, row_mass: Tensor, column_mass: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration in the log domain, after which no row's sum is less than its mass / C."""
    rows = row_mass.log() - _log_sum(kernel, 2)
    return rows, column_mass.log() - _log_sum(kernel + rows[:, :, None], 1)


def _log_sum(logs: Tensor, dim: int) -> Tensor:
    """``logs.logsumexp(dim)``, without denormal numbers."""
    largest = logs.amax(dim, keepdim=True)
    return largest.squeeze(dim) + (logs - largest).clamp(min=_LEAST_LOG).exp().sum(dim).log()


def _plan(kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The plan of two potentials. Rows of mass 0, whose potential is -inf, are exactly 0."""
    plan = (kernel + rows[:, :, None] + columns[:, None]).clamp_(min=_LEAST_LOG).exp_()
    return plan.mul_((rows > -torch.inf)[:, :, None])


def _scale(plan: Tensor, row_mass: Tensor, column_mass: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """``number`` iterations as scalings of a plan's rows and columns, which are products, not exponentials.

    An iteration shrinks no sum by more than the factor C, so that few of them stay inside float32.
    """
    # Rows of mass 0 have an empty plan: 0 / tiny. Other sums are too large to notice it.
    tiny = plan.new_full((1, 1, 1), torch.finfo(plan.dtype).tiny)
    # A vector times a matrix is many times faster than a matrix times a vector, on CPUs.
    transposed = plan.transpose(1, 2).contiguous()
    row_mass, column_mass = row_mass[:, None], column_mass[:, None]
    columns = torch.ones_like(column_mass)
    for _ in range(number):
        rows = row_mass / torch.baddbmm(tiny, columns, transposed)
        columns = column_mass / torch.baddbmm(tiny, rows, plan)
    return rows[:, 0], columns[:, 0]
