"""Joint search of a threshold and a shift: the unsigned grid that serves data best after a constant was added."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.kernels.arrays import ArrayLike
from detent.kernels.histogram_candidates import (
    OCTAVES,
    DoubleVector,
    EvaluatorFactory,
    IntVector,
    Metric,
    SplitHistogram,
    evaluate,
    power_of_two_above,
    threshold_edges,
)
from detent.kernels.histogram_search import check_options, kernel_errors, split_histogram

__all__ = ["ShiftSearch", "ShiftedGrid", "search_shift"]

ShiftedGrid = Literal["power_of_two", "symmetric"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShiftSearch:
    """For each threshold tried, the best shift and its error.

    Args:
        bits: code width.
        thresholds: candidates, float64 `[k]` ascending, each a float32 number.
        steps_shifted: the best shift for each in steps of its grid, int64 `[k]`.
        errors: mean error per counted element, float64 `[k]`.
        best: index of the least error, of the smallest threshold among equals.
    """

    bits: int
    thresholds: DoubleVector
    steps_shifted: IntVector
    errors: DoubleVector
    best: int

    @property
    def threshold(self) -> float:
        """Threshold of the best unsigned grid of shifted data."""
        return float(self.thresholds[self.best])

    @property
    def shift(self) -> float:
        """The constant to add to the data: a multiple of the step, so that zero stays on the grid."""
        return float(self.steps_shifted[self.best]) * self.threshold / (1 << self.bits)

    @property
    def error(self) -> float:
        """Mean error per element of the best grid."""
        return float(self.errors[self.best])


def search_shift(
    counts: ArrayLike,
    first_bin: int,
    width: float,
    *,
    minimum: float,
    maximum: float,
    zeros: float = 0,
    bits: int,
    grid: ShiftedGrid,
    metric: Metric,
    p: float = 2.0,
    z_threshold: float = math.inf,
    mean: float | None = None,
    std: float | None = None,
    min_threshold: float = 2.0**-16,
    evaluator: EvaluatorFactory = kernel_errors,
) -> ShiftSearch:
    """Find the threshold T and the shift s for which an unsigned grid on [0, T) serves the data plus s best.

    With step d = T / 2^bits and s = q d, codes 0 to 2^bits - 1 of the shifted data stand for the levels k d,
    -q <= k < 2^bits - q, of the data themselves. One evaluation gives the errors of all q, so the search is exact over
    all shifts. Thresholds are those that `search_histogram` tries for data as wide as these: powers of two, or all bin
    edges and sparser ones beyond. For `"noclipping"` it is the smallest threshold for which some q clips nothing (for a
    power of two, by less than one step), and the smallest such q.

    Args:
        counts: as for `search_histogram`, like all arguments that are not named here.
        first_bin: index of the first bin.
        width: a power of two.
        minimum: smallest value counted.
        maximum: largest value counted.
        zeros: mass of exact zeros.
        bits: code width, 1 to 16.
        grid: `"power_of_two"` or `"symmetric"`.
        metric: what to minimize.
        p: power of lp.
        z_threshold: bins further than this many standard deviations from the mean are dropped first.
        mean: of the data, for z_threshold.
        std: likewise.
        min_threshold: smallest threshold.
        evaluator: the compiled errors, or their twin.

    Raises:
        ConfigError: an option that is unknown or out of range.
        TypeError: counts are not int64 or float64.
        ValueError: an empty, negative or non-finite histogram.
    """
    if grid not in ("power_of_two", "symmetric"):
        raise unknown_name("grid", grid, ("power_of_two", "symmetric"))
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
        raise ConfigError(f"bits must be a whole number in 1..16 for this grid, got {bits!r}")
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
    errors, factor = evaluate(evaluator, histogram, metric, p)
    levels = 1 << bits
    if metric == "noclipping":
        threshold, shift = _unclipped(histogram, grid, levels, min_threshold)
        step = np.array([threshold / levels / width])
        sums = errors.fixed_levels(step, levels - 1 - shift, shift)
        found = np.array([threshold]), np.array([shift]), sums
    else:
        thresholds = _thresholds(histogram, grid, levels, min_threshold)
        sums, shifts = errors.best_split(thresholds / width / levels, levels - 1, 0, levels - 1, 1)
        found = thresholds, shifts, sums
    return ShiftSearch(
        bits=bits, thresholds=found[0], steps_shifted=found[1], errors=found[2] * factor, best=int(found[2].argmin())
    )


def _thresholds(histogram: SplitHistogram, grid: ShiftedGrid, levels: int, least: float) -> DoubleVector:
    span_bins = histogram.sides.positive_end + histogram.sides.negative_end
    if grid == "power_of_two":
        top = power_of_two_above(max(span_bins * histogram.width, least))
        thresholds = top * 2.0 ** np.arange(-OCTAVES, 2)
    else:
        thresholds = threshold_edges(span_bins, levels) * histogram.width
    most = float(np.finfo(np.float32).max)
    kept = thresholds[(thresholds >= least) & (thresholds <= most)]
    rounded = (kept if len(kept) else np.array([least])).astype(np.float32)
    return np.unique(rounded).astype(np.float64)


def _unclipped(histogram: SplitHistogram, grid: ShiftedGrid, levels: int, least: float) -> tuple[float, int]:
    """The smallest threshold whose levels reach both ends of the data, and the shift in steps."""
    below, above = (end * histogram.width for end in (histogram.sides.negative_end, histogram.sides.positive_end))
    if grid == "symmetric" and levels > 2:
        # With q levels below zero, the step must be at least below / q and above / (levels - 1 - q).
        q = np.arange(1.0, levels - 1)
        steps = np.maximum(below / q, above / (levels - 1 - q))
        threshold = np.float32(max(float(steps.min()) * levels, least))
        return float(np.nextafter(threshold, np.float32(np.inf))), int(q[steps.argmin()])
    threshold = power_of_two_above(max(below + above, least))
    while True:
        step = threshold / levels
        shift = math.ceil(below / step)
        if shift < levels and above <= (levels - shift) * step:
            return threshold, shift
        threshold *= 2
