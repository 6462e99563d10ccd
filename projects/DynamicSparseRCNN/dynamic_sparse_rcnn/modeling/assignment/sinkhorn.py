"""Entropic optimal transport for a batch of small problems."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Iterations between two updates of the potentials. More could leave the range of float32 in the worst case.
_ITERATIONS_A_BLOCK = 10
# Smaller logarithms contribute nothing in float32. The exponentials of the smallest would be denormal numbers, which
# are many times slower on CPUs.
_LEAST_LOG = -60.0


@dataclass(frozen=True)
class TransportPlan:
    """The mass that each row sends to each column.

    Attributes:
        plan: (N, R, C) float32, nonnegative; columns sum to their masses.
        residual: (N,) float32, the largest difference between the sum of a row or column and its mass; 0 means
            convergence.
    """

    plan: Tensor
    residual: Tensor


@torch.no_grad()
def sinkhorn(cost: Tensor, row_mass: Tensor, column_mass: Tensor, *, epsilon: float, num_iters: int) -> TransportPlan:
    """Sinkhorn iterations (Cuturi, arXiv 1306.0895) for N problems at once, stabilized in the log domain.

    Potentials are kept as logarithms. Blocks of iterations scale a plan that is computed from them (Schmitzer,
    arXiv 1610.06519), which takes one exponential per block instead of two per iteration.

    The number of iterations is fixed, since a test of convergence would synchronize with the device.

    Args:
        cost: (N, R, C), finite.
        row_mass: (N, R), nonnegative, with the same sum as ``column_mass``. Rows with mass 0 send exactly 0.
        column_mass: (N, C), positive.
        epsilon: weight of the entropy, in units of the cost.
        num_iters: number of iterations; each scales the rows and then the columns.

    Raises:
        ValueError: ``epsilon`` or ``num_iters`` is not positive.
    """
    if epsilon <= 0 or num_iters < 1:
        raise ValueError(f"epsilon must be positive and num_iters at least 1, got {epsilon} and {num_iters}")
    with torch.autocast(cost.device.type, enabled=False):
        row_mass, column_mass = row_mass.float(), column_mass.float()
        # A constant added to all costs of a column does not change the plan. Removing it preserves precision.
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
    """Runs one iteration in the log domain. After it, the sum of each row is at least its mass / C."""
    rows = row_mass.log() - _log_sum(kernel, 2)
    return rows, column_mass.log() - _log_sum(kernel + rows[:, :, None], 1)


def _log_sum(logs: Tensor, dim: int) -> Tensor:
    """Computes ``logs.logsumexp(dim)`` without denormal numbers."""
    largest = logs.amax(dim, keepdim=True)
    return largest.squeeze(dim) + (logs - largest).clamp(min=_LEAST_LOG).exp().sum(dim).log()


def _plan(kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Computes the plan of two potentials. Rows with mass 0 have the potential -inf, and are exactly 0."""
    plan = (kernel + rows[:, :, None] + columns[:, None]).clamp_(min=_LEAST_LOG).exp_()
    return plan.mul_((rows > -torch.inf)[:, :, None])


def _scale(plan: Tensor, row_mass: Tensor, column_mass: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Runs ``number`` iterations that scale the rows and columns of a plan, by products instead of exponentials.

    An iteration shrinks a sum by at most the factor C, so a few of them stay within the range of float32.
    """
    # Avoids 0 / 0 for rows with mass 0. All other sums are so large that it has no effect.
    tiny = plan.new_full((1, 1, 1), torch.finfo(plan.dtype).tiny)
    # On CPUs, a vector times a matrix is many times faster than a matrix times a vector.
    transposed = plan.transpose(1, 2).contiguous()
    row_mass, column_mass = row_mass[:, None], column_mass[:, None]
    columns = torch.ones_like(column_mass)
    for _ in range(number):
        rows = row_mass / torch.baddbmm(tiny, columns, transposed)
        columns = column_mass / torch.baddbmm(tiny, rows, plan)
    return rows[:, 0], columns[:, 0]
