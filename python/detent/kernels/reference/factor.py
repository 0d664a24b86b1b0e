"""Twin of `detent.kernels.factor`: the same bits, including the order in which products are added."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["inverse_factor", "multiply"]

Doubles = npt.NDArray[np.float64]


def inverse_factor(h: Doubles) -> Doubles:
    """Twin of `kernels.factor.inverse_factor`."""
    v = np.triu(h)
    for k in range(len(v) - 1, -1, -1):
        if not (v[k, k] > 0 and np.isfinite(v[k, k])):
            raise ValueError("h is not positive definite")
        v[k, k] = np.sqrt(v[k, k])
        v[:k, k] /= v[k, k]
        v[:k, :k] -= np.triu(np.outer(v[:k, k], v[:k, k]))
    inverse = np.zeros_like(v)
    for k in range(len(v)):
        inverse[:k, k] = -inverse[:k, k] / v[k, k]
        inverse[k, k] = 1 / v[k, k]
        inverse[: k + 1, k + 1 :] += np.outer(inverse[: k + 1, k], v[k, k + 1 :])
    return np.triu(inverse)


def multiply(a: Doubles, b: Doubles) -> Doubles:
    """Twin of `kernels.factor.multiply`."""
    total = np.zeros((len(a), b.shape[1]))
    for k in range(a.shape[1]):
        total += a[:, k, None] * b[k]
    return total
