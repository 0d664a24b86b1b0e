"""Triangular factors of symmetric matrices: the same bits on every instruction set and number of threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["inverse_factor", "multiply"]

Doubles = npt.NDArray[np.float64]


def inverse_factor(h: ArrayLike) -> Doubles:
    """Upper U, float64 `[d, d]`, with U^T U the inverse of h: its Cholesky factor, found without that inverse.

    Args:
        h: symmetric positive definite, float64 `[d, d]` in C order; what is below its diagonal is not read.

    Raises:
        ValueError: a wrong dtype, shape or layout, or h is not positive definite.
        TypeError: not an array.
    """
    return _core.inverse_factor(as_array(h, "h"))


def multiply(a: ArrayLike, b: ArrayLike) -> Doubles:
    """The product of two matrices, float64 `[n, m]`, each sum from the first product to the last.

    Args:
        a: float64 `[n, k]` in C order.
        b: float64 `[k, m]` in C order.

    Raises:
        ValueError: a wrong dtype, shape or layout.
        TypeError: not an array.
    """
    return _core.multiply(as_array(a, "a"), as_array(b, "b"))
