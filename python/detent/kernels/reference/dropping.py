"""Twin of `detent.kernels.dropping`: the same bits, including the order of summation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detent.kernels.perturbation import TensorGrid
from detent.kernels.reference.error import in_memory_order, sum_channels
from detent.kernels.reference.quantize import fake_quantize, in_range_mask

__all__ = ["dropped_gradients", "dropped_round"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def dropped_round(x: Floats, grid: TensorGrid, *, drawn: Bytes | None = None, below: int = 0) -> Floats:
    """Twin of `kernels.dropping.dropped_round`."""
    rounded = fake_quantize(x, *_arguments(grid))
    return rounded if drawn is None else np.where(drawn < below, x, rounded)


def dropped_gradients(
    g: Floats, x: Floats, grid: TensorGrid, *, drawn: Bytes | None = None, below: int = 0
) -> tuple[Floats, float]:
    """Twin of `kernels.dropping.dropped_gradients`."""
    left = np.zeros(x.shape, bool) if drawn is None else drawn < below
    inside = in_range_mask(x, *_arguments(grid))
    lower, upper = np.float32(grid.qmin - grid.zero_point), np.float32(grid.qmax - grid.zero_point)
    with np.errstate(all="ignore"):
        quotients = x / np.float32(grid.scale)
        codes = np.rint(np.clip(quotients, lower, upper))
        slopes = np.where(inside, codes - quotients, codes)
        terms = np.where(left, 0.0, g.astype(np.float64) * slopes.astype(np.float64))
        step = sum_channels(in_memory_order(terms, x, None).reshape(1, 1, x.size))[0]
    return np.where(left | inside, g, np.float32(0)), float(step)


def _arguments(grid: TensorGrid) -> tuple[Floats, npt.NDArray[np.int32], int, int]:
    return np.array([grid.scale], np.float32), np.array([grid.zero_point], np.int32), grid.qmin, grid.qmax
