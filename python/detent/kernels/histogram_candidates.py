"""Which grids a histogram search tries; the errors of those grids come from a kernel or from its twin.

Lengths with the suffix `_bins` are in units of the bin width. That is a power of two, so nothing is lost by the change
of unit, and data scaled by a power of two give exactly scaled thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from detent._registry import unknown_name

__all__ = [
    "OCTAVES",
    "EvaluatorFactory",
    "GridErrors",
    "HistogramSearch",
    "Metric",
    "SearchGrid",
    "Sides",
    "SplitHistogram",
    "evaluate",
    "power_of_two_above",
    "search_grids",
    "threshold_edges",
]

SearchGrid = Literal["power_of_two", "symmetric", "uniform"]
Metric = Literal["noclipping", "mse", "mae", "lp", "kl", "hmse"]
DoubleVector = npt.NDArray[np.float64]
IntVector = npt.NDArray[np.int64]

OCTAVES: Final = 20
"""Powers of two tried below the largest magnitude."""
DENSE_FROM: Final = 0.05
"""Every bin edge above this share of the largest magnitude is a candidate of a symmetric grid."""
SPARSE_RATIO: Final = 1.02
"""Ratio between candidates below that share; they serve heavy tails at few bits."""
LEAST_SHARE: Final = 2.0**-10
"""Candidates end at this share of the range."""
SPARE_LEVELS: Final = 32
MOST_SPARE: Final = 4.0
SPARE_RATIO: Final = 1.005
"""Grids of at most so many levels are tried up to this many times as wide as the data, in these ratios."""
COARSE_RATIO: Final = 1.03
"""Ratio between the first steps tried for a uniform grid, twice refined around the best ones."""
DENSE_SPLITS: Final = 1024
"""Positions of zero tried at first for a uniform grid; all of them around the best."""
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


class GridErrors(Protocol):
    """Summed errors of grids on one histogram, in units of the bin width."""

    def fixed_levels(self, steps: DoubleVector, positive_levels: int, negative_levels: int) -> DoubleVector:
        """Errors of the grids `k * step`, `-negative_levels <= k <= positive_levels`, float64 `[len(steps)]`."""
        ...

    def best_split(
        self, steps: DoubleVector, levels: int, first: int, last: int, stride: int
    ) -> tuple[DoubleVector, IntVector]:
        """Least error over `negative_levels` in `range(first, last + 1, stride)`, and that number, for each step."""
        ...


@dataclass(frozen=True)
class Sides:
    """A histogram as magnitudes on both sides of zero, without the exact zeros.

    Args:
        positive: mass of `[i, i + 1)` bin widths, float64 `[n]`, the last one positive.
        positive_end: largest value, in bin widths.
        negative: the same for the magnitudes of negative values.
        negative_end: largest magnitude of a negative value, in bin widths.
        zeros: mass of exact zeros.
        half_count: half the smallest positive mass.
    """

    positive: DoubleVector
    positive_end: float
    negative: DoubleVector
    negative_end: float
    zeros: float
    half_count: float


@dataclass(frozen=True)
class SplitHistogram:
    """What a search needs to know about the data: the sides, the bin width and the total mass."""

    sides: Sides
    width: float
    total: float


EvaluatorFactory = Callable[[Sides, str, float], GridErrors]


@dataclass(frozen=True, kw_only=True, eq=False)
class HistogramSearch:
    """The error curve of one bit width and its best grid.

    Args:
        bits: code width.
        signed: whether codes are signed.
        thresholds: candidates, float64 `[k]` ascending, each a float32 number; None for uniform grids.
        lowers: lower limits of the candidates, float64 `[k]` in the order of ascending steps; uniform grids only.
        uppers: upper limits, likewise.
        errors: mean error per counted element, float64 `[k]`.
        best: index of the least error, of the smallest step among equals.
    """

    bits: int
    signed: bool
    thresholds: DoubleVector | None
    lowers: DoubleVector | None
    uppers: DoubleVector | None
    errors: DoubleVector
    best: int

    @property
    def threshold(self) -> float:
        """Best threshold. Raises `AttributeError` for a uniform grid."""
        return _at(self.thresholds, self.best, "threshold")

    @property
    def lower(self) -> float:
        """Lower limit of the best uniform grid. Raises `AttributeError` for the others."""
        return _at(self.lowers, self.best, "lower")

    @property
    def upper(self) -> float:
        """Upper limit of the best uniform grid. Raises `AttributeError` for the others."""
        return _at(self.uppers, self.best, "upper")

    @property
    def error(self) -> float:
        """Mean error per element of the best grid."""
        return float(self.errors[self.best])


def _at(values: DoubleVector | None, index: int, name: str) -> float:
    if values is None:
        raise AttributeError(f"this search was for another kind of grid, which has no {name}")
    return float(values[index])


def search_grids(
    evaluator: EvaluatorFactory,
    histogram: SplitHistogram,
    *,
    bits: Sequence[int],
    grid: SearchGrid,
    metric: Metric,
    p: float,
    signed: bool,
    narrow_range: bool,
    min_threshold: float,
    holding: float | None,
) -> list[HistogramSearch]:
    """Search every bit width on a checked histogram, with errors from `evaluator(sides, metric, p)`."""
    if grid not in get_args(SearchGrid):
        raise unknown_name("grid", grid, get_args(SearchGrid))
    errors, factor = evaluate(evaluator, histogram, metric, p)
    results = []
    for n in bits:
        if grid == "uniform":
            search = _UniformSearch(errors, histogram, n, min_threshold)
            found = search.only_unclipped() if metric == "noclipping" else search.coarse_to_fine()
            result = replace(found, signed=signed)
        else:
            result = _search_thresholds(
                errors, histogram, n, grid, metric == "noclipping", signed, narrow_range, min_threshold, holding
            )
        results.append(replace(result, errors=result.errors * factor))
    return results


def evaluate(
    evaluator: EvaluatorFactory, histogram: SplitHistogram, metric: Metric, p: float
) -> tuple[GridErrors, float]:
    """Summed errors of grids on a histogram, and the factor that makes them means in the data's own unit."""
    if metric not in get_args(Metric):
        raise unknown_name("metric", metric, get_args(Metric))
    name, power = _kernel_metric(metric, p)
    # Kullback-Leibler divergence has no unit; the other errors are powers of a length.
    factor = (1.0 if metric == "kl" else histogram.width**power) / histogram.total
    return evaluator(histogram.sides, name, power), factor


def _kernel_metric(metric: Metric, p: float) -> tuple[str, float]:
    if metric == "lp" and p not in (1.0, 2.0):
        return "lp", p
    if metric == "mae" or (metric == "lp" and p == 1.0):
        return "mae", 1.0
    if metric == "kl":
        return "kl", 1.0
    return "mse", 2.0


def _search_thresholds(
    errors: GridErrors,
    histogram: SplitHistogram,
    bits: int,
    grid: SearchGrid,
    noclipping: bool,
    signed: bool,
    narrow_range: bool,
    min_threshold: float,
    holding: float | None,
) -> HistogramSearch:
    half = 1 << (bits - signed)
    negative_levels = half - narrow_range if signed else 0
    unclipped = _unclipped_threshold(histogram, grid, half, signed, narrow_range, min_threshold)
    if noclipping:
        thresholds = np.array([unclipped])
    elif grid == "power_of_two":
        thresholds = unclipped * 2.0 ** np.arange(-OCTAVES, 2)
    else:
        absmax_bins = max(histogram.sides.positive_end, histogram.sides.negative_end if signed else 0.0)
        edges = threshold_edges(absmax_bins, half)
        thresholds = np.append(edges * histogram.width, [absmax_bins * histogram.width, unclipped])
    if holding is not None:
        thresholds = _holding(thresholds, holding, half, grid, noclipping)
    # A threshold is stored as float32; rounding moves only a largest magnitude that was given in double precision.
    thresholds = thresholds[(thresholds >= min_threshold) & (thresholds <= _FLOAT32_MAX)].astype(np.float32)
    thresholds = np.unique(thresholds).astype(np.float64)
    sums = errors.fixed_levels(thresholds / histogram.width / half, half - 1, negative_levels)
    return HistogramSearch(
        bits=bits, signed=signed, thresholds=thresholds, lowers=None, uppers=None, errors=sums, best=int(sums.argmin())
    )


def _holding(thresholds: DoubleVector, value: float, levels: int, grid: SearchGrid, noclipping: bool) -> DoubleVector:
    """Thresholds whose grid has `value` as a level, in the range of those given or up to twice as wide, as the next one
    may be that far; those given if there are none."""
    if grid == "power_of_two":
        steps = value * levels / thresholds
        kept = thresholds[(steps == np.rint(steps)) & (steps >= 1) & (steps < levels)]
    else:
        having = value * levels / np.arange(levels - 1.0, 0.0, -1.0)
        kept = having[having >= thresholds.min()]
        kept = kept[:1] if noclipping else kept[kept <= 2 * thresholds.max()]
    return kept if len(kept) else thresholds


def _unclipped_threshold(
    histogram: SplitHistogram, grid: SearchGrid, half: int, signed: bool, narrow_range: bool, min_threshold: float
) -> float:
    """The smallest threshold of which the outermost level reaches the data; for power-of-two grids, the smallest power
    of two that is not below the data (which may exceed the outermost level by one step at most)."""
    positive = histogram.sides.positive_end * histogram.width
    negative = histogram.sides.negative_end * histogram.width if signed else 0.0
    if grid == "power_of_two":
        return power_of_two_above(max(positive, negative, min_threshold))
    stretch = half / (half - 1)
    reach = max(positive * stretch, negative * (stretch if narrow_range else 1.0), min_threshold)
    with np.errstate(over="ignore"):
        threshold = np.float32(reach)
    if float(threshold) < reach:
        threshold = np.nextafter(threshold, np.float32(np.inf))
    return min(float(threshold), _FLOAT32_MAX)


def power_of_two_above(value: float) -> float:
    """The smallest power of two that is not below a positive value and that float32 holds."""
    mantissa, exponent = math.frexp(value)
    return float(2.0 ** min(exponent - (mantissa == 0.5), 127))


def _spare(levels: int) -> float:
    """How far beyond the data a grid of so many levels may reach, as a factor: with few levels it can pay to leave some
    unused, so that the others meet clusters of data."""
    return min(1 + 8 / levels, MOST_SPARE) if levels <= SPARE_LEVELS else 1.0


def threshold_edges(absmax_bins: float, levels: int) -> DoubleVector:
    """Bin edges worth trying as thresholds of so many levels: all from DENSE_FROM of the largest magnitude to where
    nothing is clipped, sparser ones down to LEAST_SHARE and, with few levels, beyond the data."""
    # The outermost positive level is one step short of the threshold.
    stretch = levels / (levels - 1) if levels > 1 else 1.0
    dense_from, dense_to = max(1, math.ceil(DENSE_FROM * absmax_bins)), math.ceil(stretch * absmax_bins)
    dense = np.arange(dense_from, dense_to, dtype=np.float64)
    below = int(math.log(DENSE_FROM / LEAST_SHARE) / math.log(SPARSE_RATIO))
    beyond = int(math.log(_spare(levels)) / math.log(SPARE_RATIO))
    sparse = np.rint(dense_from * SPARSE_RATIO ** -np.arange(below + 1.0))
    wide = np.rint(dense_to * SPARE_RATIO ** np.arange(beyond + 1.0))
    return np.concatenate([sparse[sparse >= 1], dense, wide])


class _UniformSearch:
    """Steps times positions of zero, coarse to fine.

    For one step the kernel gives the errors of all positions of zero at the price of one, so the two-dimensional search
    over lower and upper limit is a scan over steps: a geometric one first, then twice around the best.
    """

    def __init__(self, errors: GridErrors, histogram: SplitHistogram, bits: int, min_threshold: float) -> None:
        self._errors = errors
        self._width = histogram.width
        self._bits = bits
        self._levels = (1 << bits) - 1
        self._below = histogram.sides.negative_end
        self._above = histogram.sides.positive_end
        self._least_step = min_threshold / self._levels / self._width
        # One-sided data keep zero at the end of the codes.
        self._first = self._levels if self._above == 0 and self._below > 0 else 0
        self._last = self._levels if self._below > 0 else 0
        # Columns of the curve: step, negative levels, error.
        self._curve: DoubleVector = np.empty((0, 3))

    def only_unclipped(self) -> HistogramSearch:
        """The grid over [minimum, maximum], alone."""
        return self._result(*self._unclipped())

    def coarse_to_fine(self) -> HistogramSearch:
        """The whole search; the curve holds the best position of zero for each step that was tried."""
        span = (self._below + self._above) / self._levels
        if span > 0:
            # The position of zero is rounded to a level, so a step more may be needed to hold the data.
            top = span * max(_spare(self._levels), 1 + 2 / self._levels)
            dense = _geometric(top, span * DENSE_FROM, COARSE_RATIO)
            self._scan(np.concatenate([dense, _geometric(dense[0], span * LEAST_SHARE, COARSE_RATIO**2)[:-1]]))
            self._refine(minima=3, ratio=COARSE_RATIO**2, points=24)
            self._refine(minima=1, ratio=COARSE_RATIO ** (1 / 6), points=12)
        return self._result(*self._unclipped())

    def _scan(self, steps: DoubleVector, around: int | None = None) -> None:
        steps = np.clip(steps, self._least_step, _FLOAT32_MAX / self._levels / self._width)
        # The step a record can hold is a float32 number.
        steps = np.unique((steps * self._width).astype(np.float32).astype(np.float64) / self._width)
        stride = max(1, self._levels // DENSE_SPLITS)
        first, last = self._first, self._last
        if around is not None and stride > 1:
            first, last = max(first, around - 2 * stride), min(last, around + 2 * stride)
            stride = 1
        errors, splits = self._errors.best_split(steps, self._levels, first, last, stride)
        self._curve = np.concatenate([self._curve, np.stack([steps, splits.astype(np.float64), errors], axis=1)])

    def _refine(self, minima: int, ratio: float, points: int) -> None:
        self._curve = self._curve[np.lexsort((self._curve[:, 2], self._curve[:, 0]))]
        errors = np.concatenate([[np.inf], self._curve[:, 2], [np.inf]])
        valleys = np.flatnonzero((errors[1:-1] <= errors[:-2]) & (errors[1:-1] <= errors[2:]))
        for valley in valleys[np.argsort(self._curve[valleys, 2], kind="stable")][:minima]:
            step, split, _ = self._curve[valley]
            self._scan(step * ratio ** np.linspace(-1, 1, points), around=int(split))

    def _unclipped(self) -> tuple[float, float, float]:
        """Lower and upper limit that hold all data and zero, in bin widths, and the error of their grid."""
        least = self._least_step * self._levels
        lower, upper = -self._below, max(self._above, least - self._below)
        step = float(np.float32((upper - lower) * self._width / self._levels)) / self._width
        negative_levels = min(int(np.rint(-lower / step)), self._levels)
        error = self._errors.fixed_levels(np.array([step]), self._levels - negative_levels, negative_levels)
        return lower, upper, float(error[0])

    def _result(self, lower: float, upper: float, error: float) -> HistogramSearch:
        steps, splits, errors = self._curve.T
        lowers = np.append(-splits * steps, lower)
        uppers = np.append((self._levels - splits) * steps, upper)
        errors = np.append(errors, error)
        order = np.lexsort((errors, uppers - lowers))
        lowers, uppers, errors = lowers[order] * self._width, uppers[order] * self._width, errors[order]
        return HistogramSearch(
            bits=self._bits,
            signed=False,
            thresholds=None,
            lowers=lowers + 0.0,  # no -0
            uppers=uppers,
            errors=errors,
            best=int(errors.argmin()),
        )


def _geometric(high: float, low: float, ratio: float) -> DoubleVector:
    count = max(1, math.ceil(math.log(high / low) / math.log(ratio)))
    values: Any = high * ratio ** np.arange(-float(count), 1.0)
    return np.asarray(values, dtype=np.float64)
