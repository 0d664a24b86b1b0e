"""The kernels of quantization with entries left as they are equal their NumPy twins bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from detent.kernels.dropping import dropped_gradients, dropped_round
from detent.kernels.perturbation import TensorGrid
from detent.kernels.quantize import fake_quantize
from detent.kernels.reference import dropping as twin
from tests import cases
from tests.fanout import assert_parity

GRIDS = {
    "signed": TensorGrid(0.037, 0, -128, 127),
    "power_of_two": TensorGrid(2.0**-3, 0, 0, 15),
    "uniform": TensorGrid(0.21, 3, 0, 15),
    "few": TensorGrid(0.9, 0, -2, 1),
}


def like(x: np.ndarray, seed: int, dtype: Any = np.float32) -> np.ndarray:
    made = np.empty_like(x, dtype)
    random = np.random.default_rng(seed)
    made[...] = random.integers(0, 256, x.shape) if dtype == np.uint8 else random.normal(size=x.shape)
    return made


def check(x: np.ndarray, grid: TensorGrid) -> None:
    g, drawn = like(x, 1), like(x, 2, np.uint8)
    for given in ({}, {"drawn": drawn, "below": 128}, {"drawn": drawn, "below": 0}, {"drawn": drawn, "below": 256}):
        assert_parity(lambda given=given: dropped_round(x, grid, **given), twin.dropped_round(x, grid, **given))
        wanted, step = twin.dropped_gradients(g, x, grid, **given)
        assert_parity(lambda given=given: dropped_gradients(g, x, grid, **given)[0], wanted)
        sums = np.array([step])
        assert_parity(lambda given=given: np.array([dropped_gradients(g, x, grid, **given)[1]]), sums)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", cases.SIZES)
def test_sizes(size: str, grid: str) -> None:
    check(cases.awkward((cases.SIZES[size],)), GRIDS[grid])


@pytest.mark.parametrize("layout", ["c_order", "channels_last"])
@pytest.mark.parametrize("shape", [name for name, shape in cases.SHAPES.items() if len(np.empty(shape).shape) > 1])
def test_shapes(shape: str, layout: str) -> None:
    make = cases.LAYOUTS.get(layout, lambda x: x)
    check(make(cases.awkward(cases.SHAPES[shape])), GRIDS["uniform"])


def test_long_ones() -> None:
    check(cases.samples((300_007,)), GRIDS["signed"])


def test_what_they_mean() -> None:
    x = cases.samples((2000,)) * 4
    g, drawn, grid = like(x, 1), like(x, 2, np.uint8), GRIDS["power_of_two"]
    left = drawn < 100
    found = dropped_round(x, grid, drawn=drawn, below=100)
    rounded = fake_quantize(x, np.array([grid.scale], np.float32), np.zeros(1, np.int32), 0, 15)
    np.testing.assert_array_equal(found, np.where(left, x, rounded))
    slopes, step = dropped_gradients(g, x, grid, drawn=drawn, below=100)
    inside = (np.rint(x / grid.scale) >= 0) & (np.rint(x / grid.scale) <= 15)
    np.testing.assert_array_equal(slopes, np.where(left | inside, g, 0))
    exact = np.where(inside, rounded - x, rounded) / grid.scale * np.where(left, 0, g)
    assert step == pytest.approx(math.fsum(exact.astype(float)), rel=1e-5)


def test_in_place() -> None:
    x = cases.samples((3, 70))
    g, grid = like(x, 1), GRIDS["few"]
    wanted, step = dropped_gradients(g, x, grid)
    held = g.copy()
    assert dropped_gradients(held, x, grid, out=held)[1] == step
    np.testing.assert_array_equal(held, wanted)
    rounded = dropped_round(x, grid)
    dropped_round(x, grid, out=x)
    np.testing.assert_array_equal(x, rounded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g": np.zeros((6, 4), np.float32)}, "g must have the shape and memory order of x"),
        ({"g": np.zeros((4, 6))}, "g must have dtype float32, got float64"),
        ({"x": np.zeros((4, 12), np.float32)[:, ::2]}, "gaps"),
        ({"drawn": np.zeros((4, 6), np.float32)}, "drawn must have dtype uint8"),
        ({"drawn": np.zeros((6, 4), np.uint8)}, "drawn must have the shape and memory order of x"),
        ({"drawn": np.zeros((4, 6), np.uint8), "below": 257}, "below must be in 0..256, got 257"),
        ({"drawn": np.zeros((4, 6), np.uint8), "below": -1}, "below must be in 0..256, got -1"),
        ({"grid": TensorGrid(0.0, 0, 0, 1)}, "finite and positive"),
        ({"grid": TensorGrid(0.1, 9, 0, 1)}, "zero_point"),
        ({"grid": TensorGrid(0.1, 2**40, 0, 1)}, "zero_point"),
        ({"grid": TensorGrid(0.1, 0, 4, 1)}, "qmin"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"g": cases.samples((4, 6)), "x": cases.samples((4, 6)), "grid": GRIDS["few"]}
    given |= change
    with pytest.raises(ValueError, match=message):
        dropped_gradients(**given)
    if "g" not in change:
        given.pop("g")
        with pytest.raises(ValueError, match=message):
            dropped_round(**given)


def test_outputs_that_overlap_the_values_are_refused() -> None:
    x, g = cases.samples((40,)), cases.samples((40,))
    with pytest.raises(ValueError, match="overlaps"):
        dropped_gradients(g, x, GRIDS["few"], out=x)
