"""The kernels that compare two tensors equal their NumPy twins bit for bit."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from detent.kernels import comparison
from detent.kernels.reference import comparison as twin
from tests import cases
from tests.fanout import assert_parity

LIMITS = ({}, {"lower": 0.0}, {"lower": -0.5, "upper": 1.5}, {"upper": 0.25})


def other(a: np.ndarray) -> np.ndarray:
    """Values near those of `a`, laid out as they are."""
    b = np.empty_like(a)
    b[...] = a + np.random.default_rng(5).normal(scale=0.3, size=a.shape).astype(np.float32)
    return b


def shifts(n: int) -> np.ndarray:
    return np.linspace(-0.4, 0.3, n, dtype=np.float32)


def check(a: np.ndarray, b: np.ndarray, **options: Any) -> None:
    axis = options.get("axis")
    shift = shifts(1 if axis is None else a.shape[axis])
    assert_parity(lambda: comparison.differences(a, b, **options), twin.differences(a, b, **options))
    assert_parity(lambda: comparison.distances(a, b, shift, **options), twin.distances(a, b, shift, **options))


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("size", cases.SIZES)
def test_sizes(size: str, limits: dict[str, float]) -> None:
    a = cases.awkward(cases.SIZES[size])
    check(a, other(a), **limits)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_every_axis_of_every_layout(shape: str, layout: str) -> None:
    a = cases.LAYOUTS[layout](cases.awkward(cases.SHAPES[shape]))
    b = other(a)
    for axis, limits in itertools.product(range(-a.ndim, a.ndim), LIMITS[:3]):
        check(a, b, axis=axis, **limits)


def test_limits_of_each_channel() -> None:
    a = cases.samples((5, 7, 3, 3))
    lower, upper = np.linspace(-2, 0, 7, dtype=np.float32), np.linspace(0.5, 3, 7, dtype=np.float32)
    check(a, other(a), lower=lower, upper=upper, axis=1)
    last = cases.LAYOUTS["channels_last"](a)
    check(last, other(last), lower=lower, upper=upper, axis=1)


def test_what_they_mean() -> None:
    a = np.array([[-1.0, 2.0, 9.0, 3.0], [-1.0, -2.0, -3.0, -4.0]], np.float32)
    b = np.array([[-3.0, -1.0, 7.0, 2.5], [-2.0, -1.0, -4.0, -3.0]], np.float32)
    sums, counts = comparison.differences(a, b, lower=0.0, upper=6.0, axis=0)
    # Both below 0 or both above 6 do not count; neither does a channel that is cut off altogether.
    assert sums.tolist() == [3.5, 0.0]
    assert counts.tolist() == [2, 0]
    before, after = comparison.distances(a, b, np.array([0.5, 3.0], np.float32), lower=0.0, upper=6.0, axis=0)
    assert before.tolist() == [2.0**2 + 0.5**2, 0.0]
    assert after.tolist() == [2.0**2 + 0.0, 1.0 + 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_nonfinite_shows_in_its_channel(bad: float, limits: dict[str, float]) -> None:
    for place in range(2):
        pair = [cases.samples((6, 3, 4)), cases.samples((6, 3, 4), seed=2)]
        pair[place][4, 1, 2] = bad
        check(*pair, axis=1, **limits)
        sums, _ = comparison.differences(*pair, axis=1, **limits)
        assert np.isfinite(sums).tolist() == [True, False, True]


def test_sums_are_accurate() -> None:
    a = cases.samples((40, 3, 90))
    b = other(a)
    sums, counts = comparison.differences(a, b, axis=1)
    exact = [math.fsum((a[:, c] - b[:, c]).astype(np.float64).ravel()) for c in range(3)]
    np.testing.assert_allclose(sums, exact, rtol=1e-12)
    assert counts.tolist() == [3600] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": np.zeros((6, 4), np.float32)}, "b must have the shape and memory order of a"),
        ({"b": np.zeros((6, 4), np.float32).T}, "b must have the shape and memory order of a"),
        ({"b": np.zeros((4, 6))}, "b must have dtype float32, got float64"),
        ({"a": np.zeros((4, 12), np.float32)[:, ::2]}, "gaps"),
        ({"axis": 2}, "axis 2 is outside"),
        ({"axis": None}, "shift must have 1 elements, got 6"),
        ({"lower": np.zeros(4, np.float32)}, "lower must have 6 elements, got 4"),
        ({"upper": np.zeros(6)}, "upper must have dtype float32"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"a": cases.samples((4, 6)), "b": cases.samples((4, 6)), "shift": shifts(6), "axis": 1}
    given |= change
    with pytest.raises(ValueError, match=message):
        comparison.distances(**given)
    if "shift" not in message:
        given.pop("shift")
        with pytest.raises(ValueError, match=message):
            comparison.differences(**given)


def test_tensors_are_read_in_place() -> None:
    torch = pytest.importorskip("torch")
    a = torch.randn(2, 5, 4, 4).contiguous(memory_format=torch.channels_last)
    sums, counts = comparison.differences(a, a - 0.5, axis=1)
    np.testing.assert_allclose(sums, [16.0] * 5, rtol=1e-6)
    assert counts.tolist() == [32] * 5
