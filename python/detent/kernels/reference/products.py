"""Twin of `detent.kernels.products`: the same bits, including the order in which products are added."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["gram", "multiply"]

FloatMatrix = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

RUN = 128


def gram(x: FloatMatrix, *, out: Matrix | None = None) -> Matrix:
    """Twin of `kernels.products.gram`."""
    return _add(np.ascontiguousarray(x.T), x, np.zeros((x.shape[1], x.shape[1])) if out is None else out)


def multiply(a: FloatMatrix, b: FloatMatrix) -> Matrix:
    """Twin of `kernels.products.multiply`."""
    return _add(a, b, np.zeros((a.shape[0], b.shape[1])))


def _add(a: FloatMatrix, b: FloatMatrix, out: Matrix) -> Matrix:
    with np.errstate(all="ignore"):
        for first in range(0, a.shape[1], RUN):
            run = np.zeros(out.shape, np.float32)
            for k in range(first, min(first + RUN, a.shape[1])):
                run = run + a[:, k, None] * b[None, k]
            out += run
    return out
