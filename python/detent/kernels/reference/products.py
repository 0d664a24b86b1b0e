"""Twin of `detent.kernels.products`: the same bits, including the order in which products are added."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["forms", "moments"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

RUN = 128
BLOCK = 32


def moments(x: Floats, *, sums: Doubles | None = None, products: Doubles | None = None) -> tuple[Doubles, Doubles]:
    """Twin of `kernels.products.moments`."""
    batch, _, columns = x.shape
    sums = np.zeros((batch, columns)) if sums is None else sums
    products = np.zeros((batch, columns, columns)) if products is None else products
    ones = np.ones((batch, 1, x.shape[1]), np.float32)
    sums[...] = _multiply(ones, x, sums[:, None])[:, 0]
    products[...] = _multiply(x.transpose(0, 2, 1), x, products)
    return sums, products


def forms(a: Floats, g: Floats, b: Floats) -> Doubles:
    """Twin of `kernels.products.forms`."""
    total = np.zeros(a.shape[:2])
    with np.errstate(all="ignore"):
        shares = _multiply(a, g, np.zeros(a.shape)) * b.astype(np.float64)
        for first in range(0, a.shape[2], BLOCK):
            block = np.zeros(total.shape)
            for column in range(first, min(first + BLOCK, a.shape[2])):
                block = block + shares[:, :, column]
            total = total + block
    return total


def _multiply(a: Floats, b: Floats, onto: Doubles) -> Doubles:
    """`onto` plus a b for each pair of matrices."""
    with np.errstate(all="ignore"):
        for first in range(0, a.shape[2], RUN):
            run = np.zeros(onto.shape, np.float32)
            for k in range(first, min(first + RUN, a.shape[2])):
                run = run + a[:, :, k, None] * b[:, None, k]
            onto = onto + run
    return onto
