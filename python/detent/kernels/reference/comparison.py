"""Twin of `detent.kernels.comparison`: the same bits, including the order of summation."""

from __future__ import annotations

from math import inf

import numpy as np
import numpy.typing as npt

from detent.kernels.reference.error import in_memory_order, sum_channels

__all__ = ["differences", "distances"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Limit = float | Floats


def differences(
    a: Floats, b: Floats, *, lower: Limit = -inf, upper: Limit = inf, axis: int | None = None
) -> tuple[Doubles, Doubles]:
    """Twin of `kernels.comparison.differences`."""
    low, high = (_along(limit, a, axis) for limit in (lower, upper))
    with np.errstate(all="ignore"):
        seen = ((np.where(a > b, a, b) > low) & (np.where(a > b, b, a) < high)).astype(np.float32)
        return _sums((a - b) * seen, a, axis), _sums(seen, a, axis)


def distances(
    a: Floats, b: Floats, shift: Floats, *, lower: Limit = -inf, upper: Limit = inf, axis: int | None = None
) -> tuple[Doubles, Doubles]:
    """Twin of `kernels.comparison.distances`."""
    low, high = (_along(limit, a, axis) for limit in (lower, upper))

    def clamped(x: Floats) -> Floats:
        above = np.where(x < low, low, x)
        return np.where(above > high, high, above)

    with np.errstate(all="ignore"):
        before, after = ((clamped(a) - clamped(x)).astype(np.float64) for x in (b, b + _along(shift, a, axis)))
        return _sums(before * before, a, axis), _sums(after * after, a, axis)


def _along(numbers: Limit, a: Floats, axis: int | None) -> Floats:
    if axis is None or not isinstance(numbers, np.ndarray):
        return np.asarray(numbers, np.float32).reshape([1] * a.ndim if isinstance(numbers, np.ndarray) else [])
    return numbers.reshape([-1 if i == axis % a.ndim else 1 for i in range(a.ndim)])


def _sums(terms: npt.NDArray[np.floating], a: Floats, axis: int | None) -> Doubles:
    return sum_channels(in_memory_order(terms.astype(np.float64), a, axis))
