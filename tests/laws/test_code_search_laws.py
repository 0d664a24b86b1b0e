"""The search of codes finds what trying all of them finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from detent.kernels.rounding import descend, round_columns, search_codes
from tests.rounding_problems import Problem, problem

KINDS = [{"bits": 2}, {"bits": 2, "groups": 2}, {"codebook": True, "bits": 2}, {"bits": 3}]


def least_losses(p: Problem, linear: np.ndarray | None) -> np.ndarray:
    """The least loss of each row, over all codes."""
    low, high = p.code_range
    rows, columns = p.weights.shape
    levels = np.stack([p.values(np.full((rows, columns), k, np.int32)) for k in range(low, high + 1)])
    least = np.full(rows, np.inf)
    every = np.array(list(itertools.product(range(high - low + 1), repeat=columns)))
    for r in range(rows):
        e = p.weights[r].astype(np.float64) - levels[every, r, np.arange(columns)]
        losses = np.einsum("ni,ij,nj->n", e, p.hessian, e)
        least[r] = np.min(losses if linear is None else losses - 2 * e @ linear[r])
    return least


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("columns", [1, 3, 5, 6])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nothing_is_better(kind: dict, columns: int, linear: bool) -> None:
    if kind.get("bits") == 3 and columns > 5:
        columns = 4
    p = problem(6, columns, seed=columns, **kind)
    offset = np.random.default_rng(2).normal(size=p.weights.shape) if linear else None
    start = np.full(p.weights.shape, p.code_range[1], np.int32)
    codes, proved = search_codes(p.weights, p.hessian, start, p.grids, linear=offset)
    assert proved.all()
    np.testing.assert_allclose(p.losses(codes, offset), least_losses(p, offset), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_losses_fall_from_columns_to_descent_to_search(seed: int) -> None:
    p = problem(20, 9, seed=seed, bits=3)
    columns = round_columns(p.weights, p.factor, p.grids)
    descended, _ = descend(p.weights, p.hessian, columns, p.grids)
    found, proved = search_codes(p.weights, p.hessian, descended, p.grids)
    assert proved.all()
    losses = [p.losses(codes) for codes in (columns, descended, found)]
    assert np.all(losses[1] <= losses[0] * (1 + 1e-12))
    assert np.all(losses[2] <= losses[1] * (1 + 1e-12))
    assert losses[2].sum() < losses[1].sum() < losses[0].sum()
    # From elsewhere, the same minimum.
    other, _ = search_codes(p.weights, p.hessian, np.zeros_like(columns), p.grids)
    np.testing.assert_allclose(p.losses(other), losses[2], rtol=1e-9)


@pytest.mark.parametrize("most_values", [0, 1, 20, 50, 200])
def test_a_limit_keeps_the_best_so_far(most_values: int) -> None:
    p = problem(10, 25, seed=1)
    start = round_columns(p.weights, p.factor, p.grids)
    codes, proved = search_codes(p.weights, p.hessian, start, p.grids, most_values=most_values)
    assert not proved.any()
    assert np.all(p.losses(codes) <= p.losses(start) * (1 + 1e-12))
    if most_values == 0:
        assert np.array_equal(codes, start)


def test_what_is_best_stays() -> None:
    p = problem(8, 6, bits=2)
    codes, _ = search_codes(p.weights, p.hessian, np.zeros((8, 6), np.int32), p.grids)
    again, proved = search_codes(p.weights, p.hessian, codes, p.grids)
    assert proved.all()
    assert np.array_equal(again, codes)
