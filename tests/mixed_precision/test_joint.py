"""With interactions: the least quadratic error on small problems, never worse than the additive one on any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detent.errors import ConfigError, InfeasibleBudgetError
from detent.mixed_precision import Problem, solve
from detent.mixed_precision.amounts import is_feasible, joint_error
from tests.mixed_precision.instances import brute_force, network, problems


@settings(max_examples=60, deadline=None)
@given(problem=problems(joint=True), distinct=st.integers(1, 4))
def test_equals_brute_force(problem: Problem, distinct: int) -> None:
    every = brute_force(problem, interactions=True)
    if not every:
        with pytest.raises(InfeasibleBudgetError):
            solve(problem, interactions=True)
        return
    found = solve(problem, interactions=True, gap=0.0, distinct=distinct)
    errors = [solution.objective for solution in found]
    np.testing.assert_allclose(errors, [error for error, _ in every[:distinct]], rtol=1e-9)
    assert len({solution.assignment for solution in found}) == len(found)
    assert errors == sorted(errors)
    for solution in found:
        assert is_feasible(problem, solution.assignment)
        assert solution.bound <= every[0][0]
        assert solution.gap == (solution.objective - solution.bound) / (solution.objective or 1.0)
    assert found[0].gap <= 1e-8


@pytest.mark.parametrize("layers", [16, 40])
@pytest.mark.parametrize("products", [False, True])
def test_large_ones_are_no_worse_than_the_additive_solution(layers: int, products: bool) -> None:
    problem = network(layers, products=products)
    additive = solve(problem, gap=1e-3)[0].assignment
    found = solve(problem, interactions=True, gap=1e-3, distinct=3)
    assert found[0].objective <= joint_error(problem, additive)
    assert len({solution.assignment for solution in found}) == 3
    assert [s.objective for s in found] == sorted(s.objective for s in found)
    for solution in found:
        assert is_feasible(problem, solution.assignment)
        assert 0 <= solution.bound <= solution.objective
        assert solution.objective == joint_error(problem, solution.assignment)
    assert solve(problem, interactions=True, gap=1e-3, distinct=3) == found


def test_the_relaxation_bounds_what_is_too_large_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    from detent.mixed_precision import joint

    monkeypatch.setattr(joint, "_FEW", 0)
    monkeypatch.setattr(joint, "_FEW_SLOTS", 0)
    proved = 0
    for seed in range(12):
        problem = network(5, seed=seed, probes=24)
        least = brute_force(problem, interactions=True)[0][0]
        (found,) = solve(problem, interactions=True)
        assert found.bound <= least <= found.objective
        proved += found.bound > 0.1 * least
    assert proved >= 10


def test_changes_that_cancel_are_found() -> None:
    problem = network(2)
    factors = (
        np.array([[1.0, 0.0], [0.1, 0.0]] + [[9.0, 9.0]] * 4),
        np.array([[-1.0, 0.0], [0.0, 0.1]] + [[9.0, 9.0]] * 4),
    )
    costs = tuple((factor**2).mean(axis=1) for factor in factors)
    pair = Problem(slots=problem.slots, costs=costs, factors=factors)
    assert solve(pair)[0].assignment == (1, 1)
    (found,) = solve(pair, interactions=True)
    assert found.assignment == (0, 0)
    assert found.objective == found.gap == 0.0


def test_a_good_start_is_kept() -> None:
    problem = network(30)
    (best,) = solve(problem, interactions=True)
    (again,) = solve(problem, interactions=True, start=best.assignment)
    assert again.objective <= best.objective


def test_they_need_factors() -> None:
    problem = network(2)
    with pytest.raises(ConfigError, match="factors"):
        solve(Problem(slots=problem.slots, costs=problem.costs), interactions=True)


def test_nothing_to_choose() -> None:
    problem = network(3)
    fixed = Problem(slots=problem.slots, costs=problem.costs, factors=problem.factors, fixed=dict.fromkeys(range(3), 2))
    (found,) = solve(fixed, interactions=True, distinct=2)
    assert found.assignment == (2, 2, 2)
    assert found.gap <= 1e-4
