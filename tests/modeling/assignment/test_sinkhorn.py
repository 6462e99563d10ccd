"""Sinkhorn's iteration against POT's, and against the exact optimum."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

from dynamic_sparse_rcnn.modeling.assignment.sinkhorn import sinkhorn


def make_problems(number: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Costs, whole row masses and unit column masses, of the same sum."""
    cost = 3 * torch.randn(number, rows, columns)
    row_mass = torch.ones(number, rows)
    row_mass[:, -1] = columns - (rows - 1)
    return cost, row_mass, torch.ones(number, columns)


def test_both_marginals_hold_and_the_residual_is_their_largest_violation():
    cost, rows, columns = make_problems(4, 6, 20)
    result = sinkhorn(cost, rows, columns, epsilon=0.5, num_iters=200)
    assert (result.plan >= 0).all()
    torch.testing.assert_close(result.plan.sum(1), columns)
    torch.testing.assert_close(result.plan.sum(2), rows, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(result.residual, (result.plan.sum(2) - rows).abs().amax(1))
    rough = sinkhorn(cost, rows, columns, epsilon=0.01, num_iters=1)
    assert (rough.residual > result.residual).all()


def test_the_plan_equals_pots():
    cost, rows, columns = make_problems(3, 5, 12)
    plan = sinkhorn(cost, rows, columns, epsilon=0.3, num_iters=2000).plan
    for n in range(3):
        arguments = [x[n].double().numpy() for x in (rows, columns, cost)]
        expected = ot.sinkhorn(*arguments, reg=0.3, method="sinkhorn_log", numItermax=10000, stopThr=1e-12)
        np.testing.assert_allclose(plan[n].numpy(), expected, atol=1e-3)


def test_the_cost_approaches_the_exact_optimum_as_epsilon_falls():
    cost, rows, columns = make_problems(1, 5, 12)
    exact = ot.emd2(*(x[0].double().numpy() for x in (rows, columns, cost)))
    gaps = []
    for epsilon in (2.0, 0.5, 0.1):
        plan = sinkhorn(cost, rows, columns, epsilon=epsilon, num_iters=5000).plan
        gaps.append((plan * cost).sum().item() - exact)
    assert gaps[0] > gaps[1] > gaps[2] > -1e-2
    assert gaps[2] < 0.05 * abs(exact)


def test_a_batch_equals_one_at_a_time():
    problems = make_problems(5, 4, 9)
    together = sinkhorn(*problems, epsilon=0.2, num_iters=30)
    for n in range(5):
        alone = sinkhorn(*(x[n : n + 1] for x in problems), epsilon=0.2, num_iters=30)
        torch.testing.assert_close(alone.plan[0], together.plan[n])
        torch.testing.assert_close(alone.residual[0], together.residual[n])


def test_rows_without_mass_send_exactly_nothing_and_change_nothing():
    cost, rows, columns = make_problems(2, 4, 9)
    expected = sinkhorn(cost, rows, columns, epsilon=0.2, num_iters=50)
    padded_cost = torch.cat([-100 * torch.ones(2, 3, 9), cost], dim=1)
    padded_rows = torch.cat([torch.zeros(2, 3), rows], dim=1)
    result = sinkhorn(padded_cost, padded_rows, columns, epsilon=0.2, num_iters=50)
    assert (result.plan[:, :3] == 0).all()
    torch.testing.assert_close(result.plan[:, 3:], expected.plan)


def test_a_constant_added_to_a_columns_costs_changes_nothing():
    cost, rows, columns = make_problems(2, 4, 9)
    expected = sinkhorn(cost, rows, columns, epsilon=0.2, num_iters=50).plan
    shifted = cost + 5 * torch.randn(2, 1, 9)
    torch.testing.assert_close(
        sinkhorn(shifted, rows, columns, epsilon=0.2, num_iters=50).plan, expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_large_costs_of_all_rows_leave_the_plan_as_it_is(offset):
    cost, rows, columns = make_problems(2, 4, 9)
    expected = sinkhorn(cost, rows, columns, epsilon=0.2, num_iters=100)
    result = sinkhorn(cost + offset, rows, columns, epsilon=0.2, num_iters=100)
    torch.testing.assert_close(result.plan, expected.plan, rtol=0, atol=0.02)
    assert result.residual.max() < expected.residual.max() + 0.02


def test_costs_spread_over_thousands_of_epsilons_equal_plain_iterations_in_float64():
    cost, rows, columns = make_problems(2, 4, 12)
    cost = 100 * cost
    plan = sinkhorn(cost, rows, columns, epsilon=0.1, num_iters=50).plan
    kernel = cost.double() / -0.1
    column_potential = columns.double().log() - kernel.logsumexp(1)
    for _ in range(51):
        row_potential = rows.double().log() - (kernel + column_potential[:, None]).logsumexp(2)
        column_potential = columns.double().log() - (kernel + row_potential[:, :, None]).logsumexp(1)
    expected = (kernel + row_potential[:, :, None] + column_potential[:, None]).exp()
    torch.testing.assert_close(plan.double(), expected, rtol=0, atol=0.01)


def test_it_is_float32_under_autocast_and_has_no_gradient():
    cost, rows, columns = make_problems(1, 4, 9)
    expected = sinkhorn(cost, rows, columns, epsilon=0.2, num_iters=50).plan
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = sinkhorn(cost.requires_grad_(), rows, columns, epsilon=0.2, num_iters=50)
    assert result.plan.dtype == torch.float32
    assert not result.plan.requires_grad
    torch.testing.assert_close(result.plan, expected)


@pytest.mark.parametrize(("epsilon", "num_iters"), [(0.0, 10), (-1.0, 10), (0.1, 0)])
def test_parameters_that_make_no_sense_are_refused(epsilon, num_iters):
    with pytest.raises(ValueError, match="epsilon must be positive"):
        sinkhorn(*make_problems(1, 2, 3), epsilon=epsilon, num_iters=num_iters)
