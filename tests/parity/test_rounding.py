"""The kernels that round weights together equal their NumPy twins bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from detent.kernels import rounding
from detent.kernels.reference import rounding as twin
from tests import cases
from tests.fanout import assert_parity
from tests.rounding_problems import Problem, factor_of, problem

SHAPES = [(1, 1), (3, 1), (1, 9), (2, 31), (17, 5), (16, 64), (33, 65), (5, 130), (70, 67), (0, 7), (4, 0)]
GRIDS = {
    "affine": {},
    "shared": {"shared": True},
    "groups": {"groups": 3, "bits": 3},
    "codebook": {"codebook": True},
    "shared_codebook": {"codebook": True, "shared": True, "groups": 2},
    "wide": {"bits": 8},
    "one_bit": {"bits": 1},
}


def check(p: Problem, linear: np.ndarray | None = None, sweeps: int = 64) -> None:
    codes = twin.round_columns(p.weights, p.factor, p.grids)
    assert_parity(lambda: rounding.round_columns(p.weights, p.factor, p.grids), codes)
    expected = twin.descend(p.weights, p.hessian, codes, p.grids, linear=linear, sweeps=sweeps)
    assert_parity(
        lambda: rounding.descend(p.weights, p.hessian, codes, p.grids, linear=linear, sweeps=sweeps), expected
    )


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_grids(shape: tuple[int, int], grids: str) -> None:
    check(problem(*shape, **GRIDS[grids]))


@pytest.mark.parametrize("sweeps", [0, 1, 2, 1000])
@pytest.mark.parametrize("shape", [(3, 17), (34, 70)], ids=str)
def test_linear_terms_and_sweeps(shape: tuple[int, int], sweeps: int) -> None:
    linear = np.random.default_rng(5).normal(size=shape)
    check(problem(*shape), linear, sweeps)
    check(problem(*shape, codebook=True, groups=2), linear, sweeps)


def test_many_rows_and_large_codebooks() -> None:
    check(problem(300, 20))
    check(problem(9, 40, codebook=True, bits=8))


def test_awkward_weights_and_steps() -> None:
    p = problem(24, 50, groups=4)
    weights = cases.awkward(p.weights.shape)
    assert isinstance(p.grids, rounding.AffineColumns)
    scale = np.random.default_rng(1).choice(np.float32(list(cases.SCALES.values())), size=(24, 4))
    check(p._replace(weights=weights))
    check(p._replace(weights=weights, grids=dataclasses.replace(p.grids, scale=scale)))


def test_updates_that_overflow_leave_codes_on_their_grids() -> None:
    p = problem(5, 12)
    factor = np.where(np.triu(np.ones((12, 12)), 1) > 0, 1e200, 0.0) + np.eye(12) * 1e-200
    check(p._replace(factor=factor))
    codes = rounding.round_columns(p.weights, factor, p.grids)
    low, high = p.code_range
    assert codes.min() >= low
    assert codes.max() <= high
    check(p._replace(hessian=p.hessian * 1e300))


def test_what_is_below_the_diagonal_of_the_factor_is_not_read() -> None:
    p = problem(3, 20)
    codes = rounding.round_columns(p.weights, p.factor, p.grids)
    spoilt = p.factor + np.tril(np.full_like(p.factor, np.nan), -1)
    spoilt[np.triu_indices(20)] = p.factor[np.triu_indices(20)]
    assert np.array_equal(rounding.round_columns(p.weights, spoilt, p.grids), codes)


def test_torch_tensors_are_taken() -> None:
    torch = pytest.importorskip("torch")
    p = problem(3, 20)
    weights, factor = torch.from_numpy(p.weights), torch.from_numpy(factor_of(p.hessian))
    codes = rounding.round_columns(weights, factor, p.grids)
    assert np.array_equal(codes, rounding.round_columns(p.weights, p.factor, p.grids))


def test_what_came_in_is_not_changed() -> None:
    p = problem(3, 20)
    codes = rounding.round_columns(p.weights, np.eye(20), p.grids)
    before = codes.copy()
    better, changes = rounding.descend(p.weights, p.hessian, codes, p.grids)
    assert changes.sum() > 0
    assert np.array_equal(codes, before)
    assert not np.array_equal(better, before)
