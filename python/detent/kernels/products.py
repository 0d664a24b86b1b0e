"""Matrix products summed in a fixed order: the same bits on every instruction set and number of threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["forms", "moments"]

Doubles = npt.NDArray[np.float64]


def moments(x: ArrayLike, *, sums: Doubles | None = None, products: Doubles | None = None) -> tuple[Doubles, Doubles]:
    """First and second moments of rows: the sums of the columns of each x, and x^T x.

    Values and products are float32 and summed in float32 over runs of 128 rows; the runs are added in float64.

    Args:
        x: float32 `[batch, n, d]` in C order, or a view of a C-ordered `[n, d, batch]`.
        sums: float64 `[batch, d]` that the sums are added to; zeros if None.
        products: float64 `[batch, d, d]` of symmetric matrices that x^T x is added to; zeros if None.

    Returns:
        `sums` and `products`.

    Raises:
        ValueError: a wrong dtype, shape or layout.
        TypeError: not an array.
    """
    rows = as_array(x)
    batch, columns = (rows.shape[0], rows.shape[2]) if rows.ndim == 3 else (0, 0)
    sums = np.zeros((batch, columns)) if sums is None else sums
    products = np.zeros((batch, columns, columns)) if products is None else products
    _core.moments(rows, sums, products)
    return sums, products


def forms(a: ArrayLike, g: ArrayLike, b: ArrayLike | None = None) -> Doubles:
    """Bilinear forms a_i g b_i^T of rows a_i and b_i, float64 `[batch, n]`.

    a g is summed as in `moments`; its products with b are float64, added up in blocks of 32 columns first.

    Args:
        a: float32 `[batch, n, d]` in C order.
        g: float32 `[batch, d, d]` in C order; symmetric if b is None.
        b: as a; None if it is a, which takes half the work.

    Raises:
        ValueError: a wrong dtype, shape or layout.
        TypeError: not an array.
    """
    return _core.forms(as_array(a, "a"), as_array(g, "g"), None if b is None else as_array(b, "b"))
