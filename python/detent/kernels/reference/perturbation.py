"""Twin of `detent.kernels.perturbation`: the same bits, including the order of summation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from detent.kernels.perturbation import TensorGrid
from detent.kernels.reference.error import in_memory_order, sum_channels
from detent.kernels.reference.quantize import fake_quantize

__all__ = ["dots", "perturbations"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def perturbations(x: Floats, g: Floats, grids: Sequence[TensorGrid]) -> Doubles:
    """Twin of `kernels.perturbation.perturbations`."""
    found = [_sums(_quantized(x, grid) - x, g, x) for grid in grids]
    return np.array(found).reshape(len(grids), len(x))


def dots(x: Floats, g: Floats) -> Doubles:
    """Twin of `kernels.perturbation.dots`."""
    return _sums(x, g, x)


def _quantized(x: Floats, grid: TensorGrid) -> Floats:
    scale, zero_point = np.array([grid.scale], np.float32), np.array([grid.zero_point], np.int32)
    return fake_quantize(x, scale, zero_point, grid.qmin, grid.qmax)


def _sums(changes: Floats, g: Floats, x: Floats) -> Doubles:
    with np.errstate(all="ignore"):
        terms = g.astype(np.float64) * changes.astype(np.float64)
        # A single sample is all there is of its axis, and any order of the others will do.
        return sum_channels(in_memory_order(terms, x, 0).reshape(1, len(x), x.size // max(len(x), 1)))
