"""Threshold search on histograms: the best grid and the whole error curve, by prefix sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.errors import ConfigError
from detent.kernels.arrays import ArrayLike, as_array
from detent.kernels.histogram_candidates import (
    DoubleVector,
    EvaluatorFactory,
    GridErrors,
    HistogramSearch,
    Metric,
    SearchGrid,
    Sides,
    SplitHistogram,
    search_grids,
)

__all__ = [
    "HistogramSearch",
    "Metric",
    "SearchGrid",
    "check_options",
    "kernel_errors",
    "search_histogram",
    "split_histogram",
]

LEAST_POWER = 1.0
MOST_POWER = 6.0


def search_histogram(
    counts: ArrayLike,
    first_bin: int,
    width: float,
    *,
    minimum: float,
    maximum: float,
    zeros: float = 0,
    bits: Sequence[int],
    grid: SearchGrid,
    metric: Metric,
    p: float = 2.0,
    signed: bool | None = None,
    z_threshold: float = math.inf,
    mean: float | None = None,
    std: float | None = None,
    narrow_range: bool = False,
    min_threshold: float = 2.0**-16,
    holding: float | None = None,
) -> list[HistogramSearch]:
    """Find the grid that loses least on the data a histogram stands for, for each bit width.

    Inside a bin the data are taken as uniform; exact zeros are on every grid and cost nothing. Errors are means over
    all counted elements, zeros included: of the squared error (mse, hmse, and noclipping, which does not search), of
    the magnitude (mae), of its power p (lp), or the Kullback-Leibler divergence in nats between the data and what
    their codes tell about them (kl; after S. Migacz, "8-bit inference with TensorRT", 2017; the definition and the
    differences are in csrc/search/histogram_search.h).

    Candidates: power_of_two, from twice the smallest power of two that is not below the data, downwards; symmetric,
    every bin edge above 5 % of the largest magnitude, sparser ones below, the largest magnitude itself, and the
    smallest threshold that clips nothing; uniform, steps times all positions of zero, coarse to fine.

    Args:
        counts: int64 or float64 (weighted) `[n]`; bin i covers `[first_bin + i, first_bin + i + 1)` times `width`.
        first_bin: index of the first bin.
        width: a power of two.
        minimum: smallest value counted, in the first occupied bin or below it.
        maximum: largest value counted, in the last occupied bin or above it.
        zeros: mass of exact zeros, part of the bin that begins at zero.
        bits: code widths, each 1 to 16 (2 to 16 for signed power-of-two and symmetric grids).
        grid: `"power_of_two"`, `"symmetric"` or `"uniform"`.
        metric: `"noclipping"`, `"mse"`, `"mae"`, `"lp"`, `"kl"` or `"hmse"` (mse on weighted counts).
        p: power of lp, 1 to 6.
        signed: sign of the codes; None: signed if negative values are left after outlier removal. Unsigned power-of-two
            and symmetric grids clip negative values to zero. For uniform grids this only names the type of the codes.
        z_threshold: bins whose centre is further than this many standard deviations from the mean are dropped first; if
            that would leave nothing, the occupied bin nearest to the mean stays.
        mean: of the data, for z_threshold; None: computed from the histogram.
        std: likewise.
        narrow_range: drop the lowest code (signed power-of-two and symmetric grids).
        min_threshold: smallest threshold, or width of a uniform range.
        holding: a positive number that is to be a level: only grids that have it are tried, if there are any. For
            power-of-two and symmetric grids.

    Returns:
        One search per entry of `bits`.

    Raises:
        TypeError: counts are not int64 or float64.
        ValueError: an empty, negative or non-finite histogram, or an option that is unknown or out of range.
    """
    return search_with(
        kernel_errors,
        counts,
        first_bin,
        width,
        minimum=minimum,
        maximum=maximum,
        zeros=zeros,
        bits=bits,
        grid=grid,
        metric=metric,
        p=p,
        signed=signed,
        z_threshold=z_threshold,
        mean=mean,
        std=std,
        narrow_range=narrow_range,
        min_threshold=min_threshold,
        holding=holding,
    )


def kernel_errors(sides: Sides, metric: str, power: float) -> GridErrors:
    """The compiled evaluation of grids."""
    return _core.HistogramErrors(
        sides.positive,
        sides.positive_end,
        sides.negative,
        sides.negative_end,
        sides.zeros,
        sides.half_count,
        metric,
        power,
    )


def search_with(
    evaluator: EvaluatorFactory,
    counts: ArrayLike,
    first_bin: int,
    width: float,
    *,
    minimum: float,
    maximum: float,
    zeros: float,
    bits: Sequence[int],
    grid: SearchGrid,
    metric: Metric,
    p: float,
    signed: bool | None,
    z_threshold: float,
    mean: float | None,
    std: float | None,
    narrow_range: bool,
    min_threshold: float,
    holding: float | None,
) -> list[HistogramSearch]:
    """`search_histogram` with the errors of grids from `evaluator`: the kernel or its twin."""
    check_options(p, min_threshold)
    histogram = split_histogram(
        counts,
        first_bin,
        width,
        minimum=minimum,
        maximum=maximum,
        zeros=zeros,
        z_threshold=z_threshold,
        mean=mean,
        std=std,
    )
    if signed is None:
        signed = histogram.sides.negative_end > 0
    _check_bits(bits, signed and grid != "uniform")
    if holding is not None and not (grid != "uniform" and math.isfinite(holding) and holding > 0):
        raise ConfigError(f"`holding` is a positive number for power_of_two and symmetric grids, got {holding!r}")
    if narrow_range and not (signed and grid != "uniform"):
        raise ConfigError("`narrow_range` is for signed power_of_two and symmetric grids")
    return search_grids(
        evaluator,
        histogram,
        bits=bits,
        grid=grid,
        metric=metric,
        p=p,
        signed=signed,
        narrow_range=narrow_range,
        min_threshold=min_threshold,
        holding=holding,
    )


def split_histogram(
    counts: ArrayLike,
    first_bin: int,
    width: float,
    *,
    minimum: float,
    maximum: float,
    zeros: float,
    z_threshold: float,
    mean: float | None,
    std: float | None,
) -> SplitHistogram:
    """A checked histogram without its outliers, as magnitudes on both sides of zero; arguments as `search_histogram`.

    Raises:
        TypeError: counts are not int64 or float64.
        ValueError: an empty, negative or non-finite histogram.
    """
    mass = _check_counts(as_array(counts, "counts"))
    _check_extent(width, minimum, maximum, zeros, z_threshold)
    mass, zeros = _drop_outliers(mass, first_bin, width, zeros, z_threshold, mean, std)
    return _split(mass, first_bin, width, minimum, maximum, zeros)


def _check_counts(counts: npt.NDArray[Any]) -> DoubleVector:
    if counts.dtype not in (np.dtype(np.int64), np.dtype(np.float64)):
        raise TypeError(f"counts must have dtype int64 or float64, got {counts.dtype}")
    if counts.ndim != 1 or not len(counts):
        raise ValueError(f"counts must be a vector with at least one bin, got shape {list(counts.shape)}")
    mass = counts.astype(np.float64)
    if not bool(np.all(np.isfinite(mass) & (mass >= 0))):
        raise ValueError("counts must be finite and not negative")
    if not mass.any():
        raise ValueError("the histogram is empty: all counts are zero")
    return mass


def _check_extent(width: float, minimum: float, maximum: float, zeros: float, z_threshold: float) -> None:
    if not (math.isfinite(width) and width > 0 and math.frexp(width)[0] == 0.5):
        raise ValueError(f"width must be a power of two, got {width!r}")
    if not (math.isfinite(minimum) and math.isfinite(maximum) and minimum <= maximum):
        raise ValueError(f"need finite minimum <= maximum, got {minimum!r} and {maximum!r}")
    if not (math.isfinite(zeros) and zeros >= 0):
        raise ValueError(f"zeros must be finite and not negative, got {zeros!r}")
    if not z_threshold > 0:
        raise ConfigError(f"z_threshold must be positive, got {z_threshold!r}")


def check_options(p: float, min_threshold: float) -> None:
    """Refuse a power or a least threshold that no search takes; raises `ConfigError`."""
    if not LEAST_POWER <= p <= MOST_POWER:
        raise ConfigError(f"p must be in {LEAST_POWER}..{MOST_POWER}, got {p!r}")
    if not 0 < min_threshold <= float(np.finfo(np.float32).max):
        raise ConfigError(f"min_threshold must be a positive float32 number, got {min_threshold!r}")


def _check_bits(bits: Sequence[int], signed_symmetric: bool) -> None:
    least = 2 if signed_symmetric else 1
    for n in bits:
        if isinstance(n, bool) or not isinstance(n, int) or not least <= n <= 16:
            kind = "a signed power_of_two or symmetric grid" if signed_symmetric else "this grid"
            raise ConfigError(f"bits must be whole numbers in {least}..16 for {kind}, got {n!r}")


def _drop_outliers(
    mass: DoubleVector,
    first_bin: int,
    width: float,
    zeros: float,
    z_threshold: float,
    mean: float | None,
    std: float | None,
) -> tuple[DoubleVector, float]:
    """The counts without the bins beyond `z_threshold`, and the zeros, which may go with their bin."""
    if math.isinf(z_threshold):
        return mass, zeros
    centers = (np.arange(len(mass)) + (first_bin + 0.5)) * width
    total = float(mass.sum())
    if mean is None:
        # Zeros count at zero, not at the centre of their bin.
        mean = (float(mass @ centers) - zeros * 0.5 * width) / total
    if std is None:
        squares = (float(mass @ (centers - mean) ** 2) + zeros * (mean**2 - (0.5 * width - mean) ** 2)) / total
        std = math.sqrt(max(squares, 0.0))
    if not (math.isfinite(mean) and math.isfinite(std) and std >= 0):
        raise ValueError(f"need a finite mean and std >= 0, got {mean!r} and {std!r}")
    distance = np.abs(centers - mean)
    keep = distance <= z_threshold * std
    if std == 0 or not mass[keep].any():
        keep = distance == distance[mass > 0].min()
    return np.where(keep, mass, 0.0), zeros if 0 <= -first_bin < len(mass) and keep[-first_bin] else 0.0


def _split(
    mass: DoubleVector, first_bin: int, width: float, minimum: float, maximum: float, zeros: float
) -> SplitHistogram:
    occupied = mass > 0
    lowest, highest = int(occupied.argmax()) + first_bin, _bins_to_last(occupied) - 1 + first_bin
    if minimum > (lowest + 1) * width or maximum < highest * width:
        raise ValueError(
            f"minimum {minimum!r} and maximum {maximum!r} leave out occupied bins, which span "
            f"[{lowest * width!r}, {(highest + 1) * width!r})"
        )
    total = float(mass.sum())
    zero_bin = -first_bin
    if zeros > 0:
        available = float(mass[zero_bin]) if 0 <= zero_bin < len(mass) else 0.0
        if zeros > available * (1 + 1e-9):
            raise ValueError(f"{zeros!r} zeros do not fit into the bin that begins at zero, which has {available!r}")
        mass = mass.copy()
        mass[zero_bin] = max(available - zeros, 0.0)
    split = min(max(zero_bin, 0), len(mass))
    positive = np.concatenate([np.zeros(max(first_bin, 0)), mass[split:]])
    negative = np.concatenate([np.zeros(max(-first_bin - len(mass), 0)), mass[:split][::-1]])
    positive, positive_end = _end_side(positive, maximum / width)
    negative, negative_end = _end_side(negative, -minimum / width)
    least = min(float(np.where(side > 0, side, np.inf).min(initial=np.inf)) for side in (positive, negative))
    half_count = 0.5 * (least if math.isfinite(least) else total)
    return SplitHistogram(Sides(positive, positive_end, negative, negative_end, zeros, half_count), width, total)


def _end_side(mass: DoubleVector, extreme_bins: float) -> tuple[DoubleVector, float]:
    """Cut empty bins off the far end; the last bin left ends at the extreme value."""
    bins = _bins_to_last(mass > 0)
    if bins == 0:
        return np.zeros(0), 0.0
    return np.ascontiguousarray(mass[:bins]), min(max(extreme_bins, bins - 1.0), float(bins))


def _bins_to_last(occupied: npt.NDArray[np.bool_]) -> int:
    """The number of bins up to the last occupied one. (`argmax` stops at the first hit; `nonzero` lists them all.)"""
    return len(occupied) - int(occupied[::-1].argmax()) if occupied.any() else 0
