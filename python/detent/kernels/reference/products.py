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


def forms(a: Floats, g: Floats, b: Floats | None = None) -> Doubles:
    """Twin of `kernels.products.forms`."""
    total = np.zeros(a.shape[:2])
    other = (a if b is None else b).astype(np.float64)
    with np.errstate(all="ignore"):
        for first in range(0, a.shape[2], BLOCK):
            last = min(first + BLOCK, a.shape[2])
            depth = last if b is None else a.shape[2]
            right = g[:, :depth, first:last].copy()
            if b is None:
                right[:, :first] *= 2
            through = _multiply(a[:, :, :depth], right, np.zeros((*total.shape, last - first)))
            terms = np.zeros((*total.shape, BLOCK))
            terms[:, :, : last - first] = through * other[:, :, first:last]
            for half in (16, 8, 4, 2, 1):
                terms = terms[:, :, :half] + terms[:, :, half:]
            total = total + terms[:, :, 0]
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
