"""How far two tensors are apart, channel by channel, as far as what reads them can tell."""

from __future__ import annotations

from math import inf

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["differences", "distances"]

Doubles = npt.NDArray[np.float64]
Limit = float | npt.NDArray[np.float32]
"""A limit for all channels, or one each: float32 `[n]`."""


def differences(
    a: ArrayLike, b: ArrayLike, *, lower: Limit = -inf, upper: Limit = inf, axis: int | None = None
) -> tuple[Doubles, Doubles]:
    """Sum of `a - b` over the elements that a clamp behind does not cut off alike, and their number.

    These have `max(a, b) > lower` and `min(a, b) < upper`. Differences are float32, their sums float64, in an order
    that depends on the shape and memory order of `a` only.

    Args:
        a: float32, dense in any order of axes.
        b: float32 with the shape and memory order of `a`.
        lower: lower limit of the clamp.
        upper: upper limit.
        axis: channel axis; None sums over everything.

    Returns:
        Sums and numbers, float64 `[n]`; a channel with a NaN or infinite element has a sum that is one.

    Raises:
        ValueError: a wrong dtype, shape or layout.
        TypeError: not an array.
    """
    x, y = as_array(a, "a"), as_array(b, "b")
    sums, counts = _core.differences(x, y, _limits(lower, x, axis), _limits(upper, x, axis), axis)
    return sums, counts


def distances(
    a: ArrayLike,
    b: ArrayLike,
    shift: npt.NDArray[np.float32],
    *,
    lower: Limit = -inf,
    upper: Limit = inf,
    axis: int | None = None,
) -> tuple[Doubles, Doubles]:
    """Sum of `(clamp(a) - clamp(b))^2`, and the same with `b + shift` for `b`.

    Differences are float32, squares and sums float64, in an order that depends on the shape and memory order of `a`
    only.

    Args:
        a: float32, dense in any order of axes.
        b: float32 with the shape and memory order of `a`.
        shift: float32 `[n]`.
        lower: lower limit of the clamp.
        upper: upper limit.
        axis: channel axis; None sums over everything.

    Returns:
        Both sums, float64 `[n]`.

    Raises:
        ValueError: a wrong dtype, shape or layout.
        TypeError: not an array.
    """
    x, y = as_array(a, "a"), as_array(b, "b")
    before, after = _core.distances(
        x, y, as_array(shift, "shift"), _limits(lower, x, axis), _limits(upper, x, axis), axis
    )
    return before, after


def _limits(limit: Limit, x: npt.NDArray[np.float32], axis: int | None) -> npt.NDArray[np.float32]:
    """One limit for each channel."""
    if isinstance(limit, np.ndarray):
        return limit
    # A wrong axis is refused by the kernel.
    entries = 1 if axis is None or not -x.ndim <= axis < x.ndim else x.shape[axis]
    return np.full(entries, limit, np.float32)
