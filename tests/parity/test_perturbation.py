"""The kernels of first-order effects equal their NumPy twins bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from detent.kernels.perturbation import TensorGrid, dots, perturbations
from detent.kernels.quantize import fake_quantize
from detent.kernels.reference import perturbation as twin
from tests import cases
from tests.fanout import assert_parity

GRIDS = (
    TensorGrid(0.037, 0, -128, 127),
    TensorGrid(2.0**-3, 0, 0, 15),
    TensorGrid(0.21, 3, 0, 15),
    TensorGrid(0.9, 0, -2, 1),
    TensorGrid(2.0**-9, -5, -32768, 32767),
)


def slopes(x: np.ndarray) -> np.ndarray:
    g = np.empty_like(x)
    g[...] = np.random.default_rng(3).normal(size=x.shape)
    return g


def check(x: np.ndarray, count: int) -> None:
    g, grids = slopes(x), GRIDS[:count]
    assert_parity(lambda: perturbations(x, g, grids), twin.perturbations(x, g, grids))
    assert_parity(lambda: dots(x, g), twin.dots(x, g))


@pytest.mark.parametrize("count", range(len(GRIDS) + 1))
@pytest.mark.parametrize("size", cases.SIZES)
def test_sizes(size: str, count: int) -> None:
    if count in (0, 2, 5) or cases.SIZES[size] < 5000:
        check(cases.awkward((1, cases.SIZES[size])), count)


@pytest.mark.parametrize("layout", ["c_order", "channels_last"])
@pytest.mark.parametrize("shape", [name for name, shape in cases.SHAPES.items() if len(np.empty(shape).shape) > 1])
def test_shapes(shape: str, layout: str) -> None:
    make = cases.LAYOUTS.get(layout, lambda x: x)
    check(make(cases.awkward(cases.SHAPES[shape])), 3)


def test_many_samples_and_long_ones() -> None:
    check(cases.awkward((70_001, 3)), 2)
    check(cases.awkward((3, 40_003)), 2)


def test_what_they_mean() -> None:
    x = cases.samples((6, 5, 4))
    g = slopes(x)
    found = perturbations(x, g, GRIDS)
    for row, grid in zip(found, GRIDS, strict=True):
        step, zero = np.array([grid.scale], np.float32), np.array([grid.zero_point], np.int32)
        changed = fake_quantize(x, step, zero, grid.qmin, grid.qmax) - x
        exact = [math.fsum((g[n].astype(float) * changed[n].astype(float)).ravel()) for n in range(6)]
        np.testing.assert_allclose(row, exact, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dots(x, g), np.einsum("nij,nij->n", x.astype(float), g.astype(float)), rtol=1e-12)


def test_nonfinite_shows_in_its_sample() -> None:
    x = cases.samples((3, 40))
    g = slopes(x)
    g[1, 7] = math.nan
    x[2, 3] = math.inf
    found = perturbations(x, g, GRIDS)
    assert np.isfinite(found[:, 0]).all()
    assert not np.isfinite(found[:, 1:]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g": np.zeros((6, 4), np.float32)}, "g must have the shape and memory order of x"),
        ({"g": np.zeros((4, 6))}, "g must have dtype float32, got float64"),
        ({"x": np.zeros((4, 12), np.float32)[:, ::2]}, "gaps"),
        ({"x": np.zeros((6, 4), np.float32).T}, "must be the slowest in memory"),
        ({"x": np.array(1, np.float32)}, "samples along its first axis"),
        ({"grids": [TensorGrid(0.0, 0, 0, 1)]}, "finite and positive"),
        ({"grids": [TensorGrid(0.1, 9, 0, 1)]}, "zero_point"),
        ({"grids": [TensorGrid(0.1, 0, 4, 1)]}, "qmin"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"x": cases.samples((4, 6)), "g": cases.samples((4, 6)), "grids": GRIDS}
    given |= change
    with pytest.raises(ValueError, match=message):
        perturbations(**given)
    if "grids" not in change:
        given.pop("grids")
        with pytest.raises(ValueError, match=message):
            dots(**given)
