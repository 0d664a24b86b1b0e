"""What is wrong with a problem is said at once, and a budget that cannot be kept is explained in figures."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

from detent.errors import ConfigError, InfeasibleBudgetError
from detent.mixed_precision import Problem, Row, Slot, solve
from tests.mixed_precision.instances import network

SLOTS = (Slot(name="a", widths=(4, 8)), Slot(name="b", widths=(2, 4, 8)))
COSTS = (np.array([1.0, 0.0]), np.array([2.0, 1.0, 0.0]))
FACTORS = (np.ones((2, 3)), np.ones((3, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"name": 3}, "needs a name"),
        ({"widths": ()}, "one width or more"),
        ({"widths": "48"}, "one width or more"),
        ({"widths": 8}, "one width or more"),
        ({"widths": (4, 4)}, "distinct"),
        ({"widths": (0, 4)}, "positive"),
        ({"widths": (4.0, 8)}, "whole number"),
        ({"widths": (True, 8)}, "whole number"),
    ],
    ids=str,
)
def test_slots(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Slot(**{"name": "a", "widths": (4, 8), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"limit": math.nan}, "limit must be"),
        ({"limit": -math.inf}, "limit must be"),
        ({"limit": "9"}, "limit must be a number"),
        ({"constant": math.inf}, "constant must be finite"),
        ({"constant": None}, "constant must be a number"),
        ({"linear": [1.0]}, "linear must map"),
        ({"linear": {"a": np.ones(2)}}, "a slot must be a whole number"),
        ({"linear": {0: np.array([1.0, math.nan])}}, "NaN or infinity"),
        ({"linear": {0: np.array([1.0, -1.0])}}, "not be negative"),
        ({"linear": {0: np.ones((2, 2))}}, "1 axes"),
        ({"linear": {0: np.array(["x", "y"])}}, "must be numbers"),
        ({"products": ((0, 1),)}, "two slots and their amounts"),
        ({"products": ((0, 0, np.ones((2, 2))),)}, "two different slots"),
        ({"products": ((0, 1, np.ones(2)),)}, "2 axes"),
        ({"products": ((0, 1, -np.ones((2, 3))),)}, "not be negative"),
    ],
    ids=str,
)
def test_rows(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Row(**{"name": "bytes", "limit": 9.0, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": ()}, "one Slot or more"),
        ({"slots": ("a", "b")}, "one Slot or more"),
        ({"slots": (SLOTS[0], SLOTS[0])}, "comes twice"),
        ({"costs": COSTS[:1]}, "2 slots, got 1"),
        ({"costs": np.ones((2, 2))}, "tuple of one array per slot"),
        ({"costs": (COSTS[1], COSTS[0])}, r"shape \[2\], got \[3\]"),
        ({"costs": (np.array([1.0, math.nan]), COSTS[1])}, "NaN"),
        ({"costs": (np.array([1.0, math.inf]), COSTS[1])}, "infinity"),
        ({"costs": (np.array([1.0, -1e-9]), COSTS[1])}, "not be negative"),
        ({"costs": (np.array([True, False]), COSTS[1])}, "must be numbers"),
        ({"rows": (1,)}, "rows must hold Row"),
        ({"rows": (Row(name="r", limit=1.0), Row(name="r", limit=2.0))}, "comes twice"),
        ({"rows": (Row(name="r", linear={2: np.ones(2)}, limit=1.0),)}, "slot 2 is outside 0..1"),
        ({"rows": (Row(name="r", linear={-1: np.ones(3)}, limit=1.0),)}, "slot -1 is outside"),
        ({"rows": (Row(name="r", linear={0: np.ones(3)}, limit=1.0),)}, r"shape \[2\], got \[3\]"),
        ({"rows": (Row(name="r", products=((0, 2, np.ones((2, 2))),), limit=1.0),)}, "slot 2 is outside"),
        ({"rows": (Row(name="r", products=((0, 1, np.ones((3, 2))),), limit=1.0),)}, r"shape \[2, 3\], got \[3, 2\]"),
        ({"factors": FACTORS[:1]}, "2 slots, got 1"),
        ({"factors": (FACTORS[0], np.ones((3, 4)))}, r"shape \[3, 3\], got \[3, 4\]"),
        ({"factors": (np.ones((2, 0)), np.ones((3, 0)))}, "one probe or more"),
        ({"factors": (np.ones(2), np.ones(3))}, "2 axes"),
        ({"factors": (np.full((2, 3), math.nan), FACTORS[1])}, "NaN"),
        ({"fixed": {2: 0}}, "slot 2 is outside"),
        ({"fixed": {0: 2}}, "candidate 2 is outside 0..1"),
        ({"fixed": {0: -1}}, "candidate -1 is outside"),
        ({"fixed": {0: 0.5}}, "whole number"),
        ({"fixed": (0, 1)}, "fixed must map"),
    ],
    ids=str,
)
def test_problems(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Problem(**{"slots": SLOTS, "costs": COSTS, "factors": FACTORS, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": None}, "must be a Problem"),
        ({"gap": -1e-4}, "gap must be"),
        ({"gap": math.nan}, "gap must be"),
        ({"gap": 1.0}, "gap must be"),
        ({"time_limit_s": 0}, "time_limit_s must be"),
        ({"time_limit_s": math.nan}, "time_limit_s must be"),
        ({"distinct": 0}, "distinct must be"),
        ({"distinct": 1.5}, "distinct must be"),
        ({"start": (0,)}, "2 slots, got 1"),
        ({"start": (0, 3)}, "not in 0..2"),
        ({"start": (0.0, 1)}, "not in 0..2|not in 0..1"),
    ],
    ids=str,
)
def test_options(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        solve(**{"problem": Problem(slots=SLOTS, costs=COSTS), **change})


def test_a_problem_stays_what_was_checked() -> None:
    costs = [values.copy() for values in COSTS]
    problem = Problem(slots=SLOTS, costs=tuple(costs))
    costs[0][0] = math.nan
    assert problem.costs[0].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="read-only"):
        problem.costs[0][0] = 2.0


def sizes(limit: float, name: str = "weight bytes", **more: Any) -> Row:
    return Row(name=name, linear={0: np.array([40.0, 80.0]), 1: np.array([5.0, 10.0, 20.0])}, limit=limit, **more)


def test_too_small_a_limit_is_explained() -> None:
    problem = Problem(slots=SLOTS, costs=COSTS, rows=(sizes(30.0), sizes(50.0, "more")))
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(problem)
    error = caught.value
    assert error.needed == {"weight bytes": 45.0, "more": 45.0}
    assert error.allowed == {"weight bytes": 30.0, "more": 50.0}
    assert "weight bytes needs 45, 30 are allowed; most of it for a 89%, b 11%" in str(error)
    assert error.where == "weight bytes"
    assert error.remedy
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.needed, again.allowed, str(again)) == (error.needed, error.allowed, str(error))


def test_the_least_of_products_is_exact() -> None:
    amounts = np.array([[9.0, 8.0, 7.0], [6.0, 7.0, 8.0]])
    row = sizes(40.0, products=((0, 1, amounts), (1, 0, np.zeros((3, 2)))))
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(Problem(slots=SLOTS, costs=COSTS, rows=(row,)))
    assert caught.value.needed == {"weight bytes": 54.0}


def test_limits_that_exclude_each_other_are_named() -> None:
    wide = {0: np.array([8.0, 4.0]), 1: np.array([8.0, 6.0, 4.0])}
    narrow = {0: np.array([4.0, 8.0]), 1: np.array([4.0, 6.0, 8.0])}
    rows = (
        Row(name="wants wide", linear=wide, limit=10.0),
        Row(name="harmless", linear=wide, limit=100.0),
        Row(name="wants narrow", linear=narrow, limit=10.0),
    )
    with pytest.raises(InfeasibleBudgetError, match="each limit can be kept alone, but not these together") as caught:
        solve(Problem(slots=SLOTS, costs=COSTS, rows=rows))
    assert caught.value.where == "wants wide, wants narrow"
    assert caught.value.needed == {"wants wide": 8.0, "harmless": 8.0, "wants narrow": 8.0}


@pytest.mark.parametrize("interactions", [False, True])
def test_where_nothing_can_be_chosen_the_error_says_so(interactions: bool) -> None:
    row = Row(name="input memory", linear={0: np.array([7.0, 7.0])}, constant=5.0, limit=10.0)
    problem = Problem(slots=SLOTS, costs=COSTS, rows=(row,), factors=FACTORS)
    with pytest.raises(InfeasibleBudgetError, match="12, 10 are allowed, and no slot has a choice"):
        solve(problem, interactions=interactions)
    fixed = Problem(slots=SLOTS, costs=COSTS, rows=(sizes(50.0),), fixed={0: 1, 1: 0})
    with pytest.raises(InfeasibleBudgetError, match="no slot has a choice"):
        solve(fixed)


def test_networks_with_hardly_any_budget() -> None:
    problem = network(30, share=0.3, products=True)
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(problem)
    assert all(caught.value.needed[name] > 0 for name in caught.value.allowed)
    assert "bit-operations" in caught.value.needed
