"""What rounding together promises: losses that fall, and codes that no single change improves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from detent.kernels.quantize import quantize
from detent.kernels.rounding import AffineColumns, descend, round_columns
from tests.rounding_problems import Problem, factor_of, problem

KINDS = [{}, {"bits": 2}, {"groups": 3}, {"codebook": True, "bits": 3}, {"codebook": True, "groups": 2, "shared": True}]


def nearest(p: Problem) -> np.ndarray:
    return round_columns(p.weights, np.eye(p.weights.shape[1]), p.grids)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_without_correlation_columns_go_to_the_nearest(kind: dict) -> None:
    p = problem(6, 30, **kind)
    diagonal = np.diag(np.random.default_rng(0).uniform(0.1, 9.0, 30))
    codes = round_columns(p.weights, factor_of(diagonal), p.grids)
    low, high = p.code_range
    every = np.stack([p.values(np.full(codes.shape, k, np.int32)) for k in range(low, high + 1)])
    least = np.abs(every - p.weights).min(axis=0)
    np.testing.assert_allclose(np.abs(p.values(codes) - p.weights), least, rtol=1e-5, atol=1e-6)
    # Nothing is left to gain.
    assert descend(p.weights, diagonal, codes, p.grids)[1].sum() == 0


def test_the_nearest_codes_are_those_of_quantize() -> None:
    p = problem(6, 30, shared=True)
    assert isinstance(p.grids, AffineColumns)
    scale, zeros = np.ravel(p.grids.scale), np.ravel(p.grids.zero_point)
    wanted = quantize(p.weights, scale, zeros, p.grids.qmin, p.grids.qmax, dtype="int8")
    assert np.array_equal(nearest(p), wanted)


def test_each_column_makes_up_for_the_errors_before_it() -> None:
    """Given the codes so far, the weights left are the best that the loss has (arXiv:2208.11580, equation 3)."""
    p = problem(4, 12)
    codes = round_columns(p.weights, p.factor, p.grids)
    values = p.values(codes)
    h, w = p.hessian, p.weights.astype(np.float64)
    for c in range(1, 12):
        fixed = values[:, :c] - w[:, :c]
        best = w[:, c:] - fixed @ h[:c, c:] @ np.linalg.inv(h[c:, c:])
        step = np.asarray(p.grids.scale)[:, 0]
        low, high = (np.ravel(p.values(np.full_like(codes, k))[:, :1]) for k in p.code_range)
        wanted = np.clip(best[:, 0], low, high)
        assert np.all(np.abs(values[:, c] - wanted) <= step * 0.5001)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_losses_fall_from_nearest_to_columns_to_descent(kind: dict, seed: int) -> None:
    p = problem(8, 40, seed=seed, **kind)
    codes = round_columns(p.weights, p.factor, p.grids)
    better, _ = descend(p.weights, p.hessian, codes, p.grids)
    assert p.losses(codes).sum() < p.losses(nearest(p)).sum()
    assert np.all(p.losses(better) <= p.losses(codes) * (1 + 1e-12))
    assert p.losses(better).sum() < p.losses(codes).sum()


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_single_change_improves_what_descent_leaves(kind: dict, linear: bool) -> None:
    p = problem(5, 19, seed=3, **kind)
    offset = np.random.default_rng(8).normal(size=p.weights.shape) if linear else None
    codes, _ = descend(p.weights, p.hessian, nearest(p), p.grids, linear=offset, sweeps=1000)
    losses = p.losses(codes, offset)
    low, high = p.code_range
    for c in range(19):
        for k in range(low, high + 1):
            other = codes.copy()
            other[:, c] = k
            step = p.values(other)[:, c].astype(np.float64) - p.values(codes)[:, c]
            slack = 2.0**-15 * step**2 * p.hessian[c, c]
            assert np.all(p.losses(other, offset) >= losses - slack - 1e-9)


def test_every_sweep_lowers_the_loss() -> None:
    p = problem(8, 60, seed=4)
    codes = np.zeros(p.weights.shape, np.int32)
    last = p.losses(codes)
    for _ in range(50):
        codes, changes = descend(p.weights, p.hessian, codes, p.grids, sweeps=1)
        losses = p.losses(codes)
        assert np.all(losses[changes > 0] < last[changes > 0])
        assert np.all(losses[changes == 0] == last[changes == 0])
        last = losses
    assert changes.sum() == 0


def test_sweeps_go_on_where_they_stopped() -> None:
    p = problem(8, 60, seed=4)
    start = nearest(p)
    once, changes = descend(p.weights, p.hessian, start, p.grids, sweeps=1)
    assert changes.sum() == np.sum(once != start)
    whole, _ = descend(p.weights, p.hessian, start, p.grids)
    rest, _ = descend(p.weights, p.hessian, once, p.grids)
    # Slopes are added up anew: near ties may fall otherwise, losses are the same to a millionth.
    np.testing.assert_allclose(p.losses(rest), p.losses(whole), rtol=1e-3)


def test_a_linear_term_is_a_shift_of_the_target() -> None:
    p = problem(6, 25, seed=5)
    target = p.weights + np.random.default_rng(2).normal(size=p.weights.shape).astype(np.float32) * np.float32(0.2)
    # |e|^2 - 2 l e is |e - l H^-1|^2 but for a constant.
    linear = -(target.astype(np.float64) - p.weights) @ p.hessian
    shifted, _ = descend(target, p.hessian, nearest(p), p.grids)
    given, _ = descend(p.weights, p.hessian, nearest(p), p.grids, linear=linear)
    assert np.array_equal(shifted, given)


def test_a_singular_matrix_is_descended() -> None:
    p = problem(6, 25, seed=6)
    x = np.random.default_rng(2).normal(size=(4, 25))
    flat = p._replace(hessian=x.T @ x)
    codes, _ = descend(p.weights, flat.hessian, nearest(p), p.grids)
    assert np.all(flat.losses(codes) <= flat.losses(nearest(p)))


def test_rows_do_not_depend_on_each_other() -> None:
    p = problem(37, 33, groups=2)
    codes = round_columns(p.weights, p.factor, p.grids)
    better, changes = descend(p.weights, p.hessian, codes, p.grids)
    assert isinstance(p.grids, AffineColumns)
    for r in (0, 15, 16, 36):
        one = dataclasses.replace(
            p.grids, scale=np.asarray(p.grids.scale)[r : r + 1], zero_point=np.asarray(p.grids.zero_point)[r : r + 1]
        )
        row = p.weights[r : r + 1]
        assert np.array_equal(round_columns(row, p.factor, one), codes[r : r + 1])
        found, count = descend(row, p.hessian, codes[r : r + 1], one)
        assert np.array_equal(found, better[r : r + 1])
        assert count[0] == changes[r]


def test_powers_of_two_scale_everything() -> None:
    p = problem(5, 30)
    assert isinstance(p.grids, AffineColumns)
    codes = round_columns(p.weights, p.factor, p.grids)
    larger = dataclasses.replace(p.grids, scale=np.asarray(p.grids.scale) * np.float32(8))
    assert np.array_equal(round_columns(p.weights * np.float32(8), p.factor * 4, larger), codes)
    found, _ = descend(p.weights, p.hessian, codes, p.grids)
    scaled, _ = descend(p.weights * np.float32(8), p.hessian / 4, codes, larger)
    assert np.array_equal(found, scaled)
