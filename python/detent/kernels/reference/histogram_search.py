"""Twin of the histogram search: errors of grids by integrating over the histogram piece by piece.

The kernel reads the same integrals from suffix sums; here each is written out from its definition. Both treat steps of
at most one bin apart, since nothing is known about the data inside a bin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from detent.kernels.arrays import ArrayLike
from detent.kernels.histogram_candidates import (
    DoubleVector,
    HistogramSearch,
    IntVector,
    Metric,
    SearchGrid,
    Sides,
)
from detent.kernels.histogram_search import search_with

__all__ = ["HistogramErrors", "search_histogram"]

_THINNEST_BIN = 2.0**-20


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
    """`detent.kernels.histogram_search.search_histogram` with errors by definition; the same arguments and results."""
    return search_with(
        HistogramErrors,
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


class HistogramErrors:
    """Summed errors of grids on one histogram, in units of the bin width."""

    def __init__(self, sides: Sides, metric: str, power: float) -> None:
        self._sides = sides
        self._metric = metric
        self._power = power

    def fixed_levels(self, steps: DoubleVector, positive_levels: int, negative_levels: int) -> DoubleVector:
        """Errors of the grids `k * step`, `-negative_levels <= k <= positive_levels`."""
        error = self._divergence if self._metric == "kl" else self._power_error
        return np.array([error(float(step), positive_levels, negative_levels) for step in steps])

    def best_split(
        self, steps: DoubleVector, levels: int, first: int, last: int, stride: int
    ) -> tuple[DoubleVector, IntVector]:
        """Least error over the numbers of negative levels, and the smallest of the best numbers, for each step."""
        splits = np.arange(first, last + 1, stride)
        errors = np.stack([self.fixed_levels(steps, levels - int(m), int(m)) for m in splits])
        best = errors.argmin(axis=0)
        return errors.min(axis=0), splits[best].astype(np.int64)

    def _power_error(self, step: float, positive_levels: int, negative_levels: int) -> float:
        sides = self._sides
        return _side_error(sides.positive, sides.positive_end, step, positive_levels, self._power) + _side_error(
            sides.negative, sides.negative_end, step, negative_levels, self._power
        )

    def _divergence(self, step: float, positive_levels: int, negative_levels: int) -> float:
        """N D(P || R), see csrc/search/histogram_search.h."""
        sides = self._sides
        parts = [
            _cells(sides.positive, step, positive_levels),
            _cells(sides.negative, step, negative_levels),
        ]
        # Both sides share the cell around zero.
        zero_cell = parts[0][0][0] + parts[1][0][0]
        loss = _within_cell(zero_cell, step)
        for cells, clipped in parts:
            divergences = [_within_cell(cell, step) for cell in cells[1:]]
            loss += sum(divergences)
            if clipped > 0:
                mass = float(cells[-1][0]) if len(cells) > 1 else float(zero_cell[0]) + sides.zeros
                within = divergences[-1] if len(cells) > 1 else _within_cell(zero_cell, step)
                loss += within * clipped / mass if mass > 0 else 0.0
                seen = mass + sides.half_count
                loss += (seen + clipped) * math.log((seen + clipped) / seen) - clipped
        return loss


def _side_error(counts: DoubleVector, end: float, step: float, levels: int, power: float) -> float:
    """Sum of |x - Q(x)|^power over one side of zero with levels 0, step, ..., levels * step."""
    bins = len(counts)
    if bins == 0:
        return 0.0
    end = max(end, bins - 1 + _THINNEST_BIN)
    top = levels * step
    fine = step <= 1.0
    # Cut the side into pieces on which density and level are constant and x - level keeps its sign.
    own = np.arange(1.0, bins)
    grid = [top] if fine else 0.5 * step * np.arange(2 * min(levels, math.ceil(end / step)) + 1)
    cuts = np.unique(np.clip(np.concatenate([[0.0, end], own, grid]), 0.0, end))
    low, high = cuts[:-1], cuts[1:]
    middle = 0.5 * (low + high)
    bin_of = np.minimum(middle.astype(np.int64), bins - 1)
    widths = np.where(np.arange(bins) == bins - 1, end - (bins - 1), 1.0)
    density = counts[bin_of] / widths[bin_of]
    level = np.minimum(np.rint(middle / step), levels) * step
    near = np.minimum(np.abs(low - level), np.abs(high - level))
    far = np.maximum(np.abs(low - level), np.abs(high - level))
    integral = (far ** (power + 1) - near ** (power + 1)) / (power + 1)
    if fine:
        uniform = (high - low) * (0.5 * step) ** power / (power + 1)
        integral = np.where(middle < top, uniform, integral)
    return float(np.sum(density * integral))


def _cells(counts: DoubleVector, step: float, levels: int) -> tuple[DoubleVector, float]:
    """Mass, occupied width and sum of c log c of the cells of one side, `[levels + 1, 3]`, and the mass beyond them.

    Cell 0 is the half around zero that lies on this side.
    """
    bins = len(counts)
    boundaries = (np.arange(levels + 1) + 0.5) * step
    cuts = np.unique(np.clip(np.concatenate([[0.0, bins], np.arange(1.0, bins), boundaries]), 0.0, bins))
    length = np.diff(cuts)
    middle = cuts[:-1] + 0.5 * length
    density = counts[np.minimum(middle.astype(np.int64), bins - 1)] if bins else np.zeros(len(middle))
    log_density = np.log(np.where(density > 0, density, 1.0))
    quantities = np.stack([density, (density > 0).astype(np.float64), density * log_density], axis=1) * length[:, None]
    cell = np.searchsorted(boundaries, middle)
    sums = np.zeros((levels + 2, 3))
    np.add.at(sums, cell, quantities)
    return sums[:-1], float(sums[-1, 0])


def _within_cell(cell: DoubleVector, step: float) -> float:
    """Divergence between the data of a cell and its mass spread evenly over the occupied part, times the mass."""
    mass, occupied, entropy = (float(value) for value in cell)
    if step <= 1.0 or mass <= 0.0:
        return 0.0
    return max(entropy - mass * math.log(mass / occupied), 0.0)
