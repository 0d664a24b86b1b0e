"""Raising widths for free: the limits are kept, the sum of costs falls, and nothing is left that could be raised."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from detent.errors import InfeasibleBudgetError
from detent.mixed_precision import Problem, Row, Slot, raise_for_free, solve
from detent.mixed_precision.amounts import additive_error, is_feasible, joint_error, next_wider
from tests.mixed_precision.instances import problems


@settings(max_examples=60, deadline=None)
@given(problem=problems(joint=True))
def test_the_limits_are_kept_and_nothing_is_left_to_raise(problem: Problem) -> None:
    try:
        start = solve(problem, interactions=True)[0].assignment
    except InfeasibleBudgetError:
        return
    found = raise_for_free(problem, start)
    assert is_feasible(problem, found)
    assert additive_error(problem, found) <= additive_error(problem, start)
    for slot, wider in next_wider(problem, found).items():
        raised = (*found[:slot], wider, *found[slot + 1 :])
        saves = problem.costs[slot][wider] < problem.costs[slot][found[slot]]
        assert not (saves and is_feasible(problem, raised))
    assert raise_for_free(problem, found) == found


def test_errors_that_cancel_along_one_direction_do_not_narrow_what_fits() -> None:
    factors = (np.array([[0.1], [1.0]]), np.array([[-1.0], [-2.0]]))
    row = Row(name="bytes", linear={0: np.array([8.0, 4.0]), 1: np.array([8.0, 4.0])}, limit=16)
    problem = Problem(
        slots=(Slot(name="a", widths=(8, 4)), Slot(name="b", widths=(8, 4))),
        costs=tuple((part**2).mean(axis=1) for part in factors),
        rows=(row,),
        factors=factors,
    )
    (found,) = solve(problem, interactions=True)
    assert found.assignment == (1, 0)  # narrower though there is room
    assert raise_for_free(problem, found.assignment) == (0, 0)
    assert joint_error(problem, (0, 0)) > found.objective


def test_the_largest_saving_comes_first_where_not_all_fit() -> None:
    row = Row(name="bytes", linear={0: np.array([8.0, 4.0]), 1: np.array([8.0, 4.0])}, limit=12)
    costs = (np.array([0.0, 1.0]), np.array([0.0, 3.0]))
    slots = (Slot(name="a", widths=(8, 4)), Slot(name="b", widths=(8, 4)))
    assert raise_for_free(Problem(slots=slots, costs=costs, rows=(row,)), (1, 1)) == (1, 0)
    level = (np.array([2.0, 1.0]), np.array([3.0, 3.0]))  # wider, and no better
    assert raise_for_free(Problem(slots=slots, costs=level, rows=(row,)), (1, 1)) == (1, 1)
