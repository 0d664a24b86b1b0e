"""Matrix products summed in a fixed order: the same bits on every instruction set and number of threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["gram", "multiply"]

Matrix = npt.NDArray[np.float64]


def gram(x: ArrayLike, *, out: Matrix | None = None) -> Matrix:
    """The Gram matrix of the columns of `x`, x^T x, float64 `[d, d]`.

    Products are float32 and summed in float32 over runs of 128 rows; the runs are added in float64.

    Args:
        x: float32 `[n, d]` in C order.
        out: symmetric float64 `[d, d]` that x^T x is added to; a matrix of zeros if None.

    Raises:
        ValueError: a wrong dtype, shape or layout.
        TypeError: not an array.
    """
    rows = as_array(x)
    if out is None:
        columns = rows.shape[-1] if rows.ndim else 0
        out = np.zeros((columns, columns))
    return _core.gram(rows, out)


def multiply(a: ArrayLike, b: ArrayLike) -> Matrix:
    """The matrix product a b, float64 `[m, n]`, summed along the common axis as in `gram`.

    Args:
        a: float32 `[m, k]` in C order.
        b: float32 `[k, n]` in C order.

    Raises:
        ValueError: a wrong dtype, shape or layout.
        TypeError: not an array.
    """
    return _core.multiply(as_array(a, "a"), as_array(b, "b"))
