"""The error kernel equals its NumPy twin bit for bit: the same terms, added in the same order."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from detent.kernels.error import tensor_error
from detent.kernels.quantize import fake_quantize
from detent.kernels.reference.error import tensor_error as twin
from tests import cases
from tests.fanout import assert_parity
from tests.parity.test_quantize import one, per_channel

POWERS = (1.0, 2.0, 2.4, 0.5)


def check(x: np.ndarray, *numbers: Any, **options: Any) -> None:
    assert_parity(lambda: tensor_error(x, *numbers, **options), twin(x, *numbers, **options))


def weights_for(x: np.ndarray) -> np.ndarray:
    weights = np.empty_like(x)
    weights[...] = np.random.default_rng(9).exponential(size=x.shape)
    return weights


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("size", cases.SIZES)
def test_sizes(size: str, p: float) -> None:
    x = cases.awkward(min(cases.SIZES[size], 70_000 if p == 0.5 else 10**9))
    for scale, weights in itertools.product((0.037, 2.0**-5), (None, weights_for(x))):
        check(x, *one(scale), -128, 127, p=p, weights=weights)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_every_axis_of_every_layout(shape: str, layout: str) -> None:
    x = cases.LAYOUTS[layout](cases.awkward(cases.SHAPES[shape]))
    check(x, *one(0.05), -128, 127)
    for axis in range(-x.ndim, x.ndim):
        grid = per_channel(x.shape[axis], -128, 127, power_of_two=axis % 2 == 0)
        check(x, *grid, -128, 127, axis=axis)
        check(x, *grid, -128, 127, axis=axis, p=1.0, weights=weights_for(x))


@pytest.mark.parametrize(("shape", "axis", "group_size"), [((6, 8), 0, 4), ((6, 8), 1, 3), ((4, 6, 3, 3), 0, 2)])
def test_groups(shape: tuple[int, ...], axis: int, group_size: int) -> None:
    x = cases.awkward(shape)
    grid = per_channel(shape[axis] * (shape[1 - axis] // group_size), -8, 7)
    check(x, *grid, -8, 7, axis=axis, group_size=group_size)
    check(x, *grid, -8, 7, axis=axis, group_size=group_size, weights=weights_for(x))


def test_many_channels_innermost() -> None:
    # More channels than a task takes, and than partial sums are kept for.
    x = cases.awkward((3, 70_001))
    check(x, *per_channel(70_001, -128, 127), -128, 127, axis=1)
    check(np.ascontiguousarray(x.T[:5000]), *per_channel(3, -128, 127), -128, 127, axis=1)


def test_long_rows_are_sliced() -> None:
    x = cases.awkward((3, 2, 40_003))
    check(x, *per_channel(2, -128, 127), -128, 127, axis=1)
    check(x, *one(0.03), -128, 127, p=1.0, weights=weights_for(x))


@pytest.mark.parametrize("p", POWERS)
def test_sum_is_accurate(p: float) -> None:
    x = cases.samples((7, 5, 331))
    grid = per_channel(5, -128, 127)
    distance = np.abs(fake_quantize(x, *grid, -128, 127, axis=1).astype(np.float64) - x)
    exact = [math.fsum(math.pow(d, p) for d in distance[:, c].reshape(-1)) for c in range(5)]
    # Each term carries at most 3 roundings, each sum of n at most n; both are far below n * 2^-52.
    np.testing.assert_allclose(
        tensor_error(x, *grid, -128, 127, p=p, axis=1), exact, rtol=distance[:, 0].size * 2.0**-52
    )


def test_nonfinite_stays_in_its_channel() -> None:
    x = cases.samples((4, 3))
    x[1, 0], x[2, 1] = np.nan, np.inf
    grid = per_channel(3, -128, 127)
    check(x, *grid, -128, 127, axis=1)
    nan, infinite, finite = tensor_error(x, *grid, -128, 127, axis=1)
    assert math.isnan(nan)
    assert infinite == math.inf
    assert math.isfinite(finite)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.0}, "p must be finite and positive, got 0"),
        ({"p": -1.0}, "p must be finite and positive"),
        ({"p": math.nan}, "p must be finite and positive"),
        ({"p": math.inf}, "p must be finite and positive"),
        ({"weights": np.ones((6, 4), np.float32)}, "weights must have the shape and memory order of x"),
        ({"weights": np.ones((6, 4), np.float32).T}, "weights must have the shape and memory order of x"),
        ({"weights": np.ones((4, 6))}, "weights must have dtype float32, got float64"),
        ({"axis": 5}, "axis 5 is outside"),
        ({"axis": 1}, "scale must have 6 elements"),
        ({"axis": 0, "group_size": 5}, "does not divide"),
        ({"group_size": 2}, "give `axis`"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    x = cases.samples((4, 6))
    with pytest.raises(ValueError, match=message):
        tensor_error(x, *one(0.1), -128, 127, **options)


def test_views_with_gaps_are_refused() -> None:
    for make in cases.GAPS.values():
        with pytest.raises(ValueError, match="gaps"):
            tensor_error(make(cases.samples((4, 6))), *one(0.1), -128, 127)
