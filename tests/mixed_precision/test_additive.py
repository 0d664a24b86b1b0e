"""The integer program finds what brute force finds, keeps every limit exactly, and says how sure it is."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detent.errors import ConfigError, InfeasibleBudgetError
from detent.mixed_precision import Problem, Row, Slot, solve
from detent.mixed_precision.amounts import additive_error, is_feasible
from tests.mixed_precision.instances import WIDTHS, brute_force, network, problems


@settings(max_examples=150, deadline=None)
@given(problem=st.one_of(problems(), problems(whole=True)))
def test_equals_brute_force(problem: Problem) -> None:
    every = brute_force(problem)
    if not every:
        with pytest.raises(InfeasibleBudgetError):
            solve(problem)
        return
    (best,) = solve(problem, gap=0.0)
    assert best.objective == pytest.approx(every[0][0], rel=1e-9)
    assert best.objective == additive_error(problem, best.assignment)
    assert is_feasible(problem, best.assignment)
    assert best.bound <= every[0][0]
    assert best.gap <= 1e-8


@settings(max_examples=80, deadline=None)
@given(problem=st.one_of(problems(), problems(whole=True)), distinct=st.integers(2, 6))
def test_distinct_solutions_are_the_best_ones(problem: Problem, distinct: int) -> None:
    every = brute_force(problem)
    if not every:
        return
    found = solve(problem, gap=0.0, distinct=distinct)
    assert len(found) == min(distinct, len(every))
    assert len({solution.assignment for solution in found}) == len(found)
    errors = [solution.objective for solution in found]
    assert errors == sorted(errors)
    np.testing.assert_allclose(errors, [error for error, _ in every[: len(found)]], rtol=1e-9)
    assert all(solution.bound <= every[0][0] and is_feasible(problem, solution.assignment) for solution in found)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), gap=st.sampled_from([1e-4, 0.01, 0.2]))
def test_the_gap_is_kept_and_proved(problem: Problem, gap: float) -> None:
    every = brute_force(problem)
    if every:
        (found,) = solve(problem, gap=gap)
        assert found.bound <= every[0][0] * (1 + 1e-12)
        assert found.gap <= gap + 1e-8
        assert found.objective <= every[0][0] / (1 - gap) + 1e-12


@settings(max_examples=40, deadline=None)
@given(problem=st.one_of(problems(), problems(whole=True)), data=st.data())
def test_any_start_leads_to_the_same_error(problem: Problem, data: st.DataObject) -> None:
    if brute_force(problem):
        start = [data.draw(st.integers(0, count - 1)) for count in problem.counts]
        assert solve(problem, gap=0.0, start=start)[0].objective == solve(problem, gap=0.0)[0].objective


@pytest.mark.parametrize("products", [False, True])
def test_networks_are_solved_to_the_gap_and_always_alike(products: bool) -> None:
    problem = network(20 if products else 60, products=products)
    first, again = (solve(problem, distinct=2) for _ in range(2))
    assert first == again
    assert first[0].gap <= 1e-4
    assert is_feasible(problem, first[0].assignment)
    assert first[0].assignment != first[1].assignment


def test_a_thousand_slots_are_solved_to_the_gap() -> None:
    problem = network(1000, probes=1)
    (found,) = solve(problem)
    assert found.gap <= 1e-4
    assert is_feasible(problem, found.assignment)


@pytest.mark.parametrize("unit", [1e-12, 1e-3, 1.0, 1e12])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e9])
def test_units_do_not_matter(unit: float, size: float) -> None:
    problem = network(8, probes=3)
    rows = tuple(
        Row(name=row.name, linear={s: a * size for s, a in row.linear.items()}, limit=row.limit * size)
        for row in problem.rows
    )
    scaled = Problem(slots=problem.slots, costs=tuple(costs * unit for costs in problem.costs), rows=rows)
    wanted = solve(problem, gap=0.0)[0]
    found = solve(scaled, gap=0.0)[0]
    assert found.assignment == wanted.assignment
    assert found.objective == pytest.approx(wanted.objective * unit)


def test_costs_of_all_magnitudes_in_one_problem() -> None:
    random = np.random.default_rng(3)
    costs = tuple(10.0 ** random.uniform(-12, 12, 5) for _ in range(6))
    slots = tuple(Slot(name=f"{s}", widths=WIDTHS[:5]) for s in range(6))
    linear = {s: random.integers(1, 10**9, 5).astype(float) for s in range(6)}
    pairs = tuple((s, s + 1, random.integers(1, 10**9, (5, 5)).astype(float)) for s in range(5))
    for products in ((), pairs):
        every: list[tuple[float, tuple[int, ...]]] = []
        for limit in (1.2e9, 2e9, 4e9):
            row = Row(name="bytes", linear=linear, products=products, limit=limit)
            problem = Problem(slots=slots, costs=costs, rows=(row,))
            every = brute_force(problem)
            if every:
                assert solve(problem, gap=0.0)[0].objective == pytest.approx(every[0][0], rel=1e-9)
        assert every


def test_a_limit_is_never_exceeded_by_a_single_byte() -> None:
    # Better by far, were it not for one byte in a billion.
    slots = tuple(Slot(name=name, widths=(4, 8)) for name in "abc")
    size = np.array([5e8, 1e9])
    costs = (np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    pairs = ((0, 1, np.array([[0.0, 0.0], [0.0, 0.0]])),)
    for products in ((), pairs):
        for spare, wide in ((0, 3), (-1, 2)):
            row = Row(name="bytes", linear=dict.fromkeys(range(3), size), products=products, limit=3e9 + spare)
            (found,) = solve(Problem(slots=slots, costs=costs, rows=(row,)))
            assert sum(found.assignment) == wide
            assert found.use["bytes"] <= row.limit


def test_what_binds_and_what_is_used() -> None:
    slots = (Slot(name="a", widths=(8, 4)), Slot(name="b", widths=(4, 8)))
    costs = (np.array([0.0, 9.0]), np.array([5.0, 0.0]))
    rows = (
        Row(name="tight", linear={0: np.array([8.0, 4.0]), 1: np.array([4.0, 8.0])}, constant=1.0, limit=13.0),
        Row(name="loose", linear={0: np.array([8.0, 4.0])}, limit=100.0),
        Row(name="measured", products=((0, 1, np.array([[1.0, 2.0], [3.0, 4.0]])),), limit=math.inf),
    )
    (found,) = solve(Problem(slots=slots, costs=costs, rows=rows))
    assert found.assignment == (0, 0)
    assert found.binding == ("tight",)
    assert found.use == {"tight": 13.0, "loose": 8.0, "measured": 1.0}
    (free,) = solve(Problem(slots=slots, costs=costs))
    assert free.assignment == (0, 1)
    assert free.binding == ()
    assert free.objective == free.bound == free.gap == 0.0


def test_what_is_fixed_stays() -> None:
    problem = network(6)
    fixed = Problem(slots=problem.slots, costs=problem.costs, rows=problem.rows, fixed={2: 0, 4: 5})
    (found,) = solve(fixed)
    assert (found.assignment[2], found.assignment[4]) == (0, 5)
    every = Problem(slots=problem.slots, costs=problem.costs, fixed=dict.fromkeys(range(6), 1))
    assert [solution.assignment for solution in solve(every, distinct=3)] == [(1,) * 6]


def test_out_of_time_is_an_error_or_the_start() -> None:
    problem = network(40, products=True)
    narrow = [0] * 40
    (found,) = solve(problem, time_limit_s=1e-9, start=narrow)
    assert is_feasible(problem, found.assignment)
    assert found.objective <= additive_error(problem, narrow)
    assert 0 <= found.bound <= found.objective
    with contextlib.suppress(ConfigError):
        assert solve(problem, time_limit_s=1e-9)[0].gap >= 0


@pytest.mark.parametrize("kinds", [1, 4])
def test_many_slots_of_a_kind_and_a_limit_that_rounding_misses(kinds: int) -> None:
    random = np.random.default_rng(0)
    scales, sizes = random.lognormal(0, 1, kinds), random.integers(1000, 10**6, kinds)
    widths = np.array(WIDTHS)
    most = sum(int(sizes[s % kinds]) for s in range(100)) * 4.31  # a whole number, but for rounding
    row = Row(name="bytes", linear={s: float(sizes[s % kinds]) * widths for s in range(100)}, limit=most)
    problem = Problem(
        slots=tuple(Slot(name=f"{s}", widths=WIDTHS) for s in range(100)),
        costs=tuple(scales[s % kinds] * 4.0**-widths for s in range(100)),
        rows=(row,),
    )
    (found,) = solve(problem)
    assert found.gap <= 1e-4
    assert is_feasible(problem, found.assignment)


def test_limits_between_amounts_are_the_lower_ones() -> None:
    def limit(amounts: list[float], limit: float) -> tuple[float, bool]:
        return Row(name="r", linear={0: np.array(amounts)}, limit=limit).attainable_limit

    assert limit([1.0, 2.0], 2.75) == (2.0, True)
    assert limit([0.5, 2.125], 2.75) == (2.75, True)
    assert limit([0.5, 2.125], 2.8) == (2.75, True)
    assert limit([0.1, 0.2], 0.25) == (0.25, False)
    assert limit([1e16, 1.0], 1e16) == (1e16, False)
    assert limit([1.0], math.inf) == (math.inf, False)
    assert limit([1.0], -0.5) == (-1.0, True)
