"""Numbers of few bits times powers of two, and sums that powers of two align: the arithmetic of Akida."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["aligned_total", "alignment", "to_bits"]


def to_bits(numbers: npt.NDArray[np.float64], bits: int) -> npt.NDArray[np.float64]:
    """The nearest whole numbers of so many bits times powers of two, ties away from zero; whole ones stay whole."""
    mantissa, exponent = np.frexp(np.abs(numbers))
    found: npt.NDArray[np.float64] = np.ldexp(np.floor(mantissa * 2.0**bits + 0.5), exponent - bits)
    return np.copysign(found, numbers)


def aligned_total(
    a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], scales: tuple[float, float, float]
) -> npt.NDArray[np.int64]:
    """Sums in steps of the result, ties upward, where all three scales are powers of two."""
    shifts = alignment(scales)
    half = (1 << shifts[2]) >> 1
    return ((a << shifts[0]) + (b << shifts[1]) + half) >> shifts[2]


def alignment(scales: tuple[float, float, float]) -> tuple[int, int, int]:
    """By how many bits two addends go up, and their sum down, to be in steps of the result."""
    first, second, result = (int(np.frexp(scale)[1]) for scale in scales)
    least = min(first, second, result)
    return first - least, second - least, result - least
