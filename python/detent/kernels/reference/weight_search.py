"""Twin of `detent.kernels.weight_search`.

The dense searches, the powers of two and all errors are the kernel's to the bit. The exact search here sorts every
breakpoint; the kernel excludes most of them, so both reach the same optimum, in float64 arithmetic of different order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from detent.kernels.reference.weight_scales import (
    Channel,
    Codes,
    add_lanes,
    clipping_cost,
    search_scale,
    search_uniform,
    to_rows,
)
from detent.kernels.weight_divergence import search_divergence, split_rows
from detent.kernels.weight_options import Method, WeightGrid, WeightMetric, WeightSearch, check_options, is_exact

__all__ = ["search_weights"]

FloatArray = npt.NDArray[np.float32]

LARGEST = 2.0**127
OCTAVES = 64


def search_weights(
    w: FloatArray,
    *,
    bits: Sequence[int],
    grid: WeightGrid,
    metric: WeightMetric,
    p: float = 2.0,
    axis: int | None = 0,
    group_size: int | None = None,
    weights: FloatArray | None = None,
    narrow_range: bool = False,
    min_threshold: float = 2.0**-16,
    method: Method = "exact",
) -> list[WeightSearch]:
    """Twin of `kernels.weight_search.search_weights`."""
    check_options(bits, grid, metric, method, p, narrow_range, min_threshold, weights is not None)
    rows = split_rows(w, axis, group_size)
    if metric == "kl":
        return search_divergence(rows, bits, grid, narrow_range, min_threshold)
    importance = None if weights is None else split_rows(weights, axis, group_size)
    floor = float(np.float32(min_threshold))
    searches = []
    for width in bits:
        found = []
        for i, row in enumerate(rows):
            job = Job(row, None if importance is None else importance[i], metric, p, floor)
            found.append(job.search(width, grid, metric, narrow_range, is_exact(width, grid, metric, p, method)))
        first, second, errors = (np.array(column) for column in zip(*found, strict=True))
        uniform = grid == "uniform"
        searches.append(
            WeightSearch(
                bits=width,
                thresholds=None if uniform else first.astype(np.float32),
                lowers=first.astype(np.float32) if uniform else None,
                uppers=second.astype(np.float32) if uniform else None,
                errors=errors,
                exact=is_exact(width, grid, metric, p, method),
            )
        )
    return searches


class Job:
    """One channel, brought to [1, 2) by a power of two."""

    def __init__(self, row: FloatArray, h: FloatArray | None, metric: WeightMetric, p: float, floor: float) -> None:
        largest = float(np.abs(row).max())
        # At most that, every value gets code 0 on every grid allowed, of any width.
        self.exponent = 0 if largest <= floor * 2.0**-24 else math.frexp(largest)[1] - 1
        self.floor = math.ldexp(floor, -self.exponent)
        self.cap = math.ldexp(LARGEST, -self.exponent)
        power = {"mae": 1.0, "lp": p}.get(metric, 2.0)
        x = to_rows(np.ldexp(row.astype(np.float64), -self.exponent).astype(np.float32))
        h_exponent = 0 if h is None or not h.any() else math.frexp(float(h.max()))[1] - 1
        weight = None if h is None else to_rows(np.ldexp(h.astype(np.float64), -h_exponent).astype(np.float32))
        magnitudes = np.abs(x.astype(np.float64))
        squares = magnitudes * magnitudes if weight is None else magnitudes * magnitudes * weight.astype(np.float64)
        self.channel = Channel(
            x=x,
            h=weight,
            top=max(0.0, float(x.max())),
            bottom=max(0.0, -float(x.min())),
            importance=float(row.size) if weight is None else add_lanes(weight.astype(np.float64)),
            energy=add_lanes(squares),
            cost="square" if power == 2 else "absolute" if power == 1 else "power",
            power=power,
        )
        self.least_useful = self._least_useful(magnitudes, squares, row.size)
        self.unit = math.pow(2.0, self.exponent * power) * math.ldexp(1.0, h_exponent) / row.size

    def _least_useful(self, magnitudes: npt.NDArray[np.float64], squares: npt.NDArray[np.float64], n: int) -> float:
        """Below this, no threshold beats coding one value exactly and all others as zero."""
        largest = max(self.channel.top, self.channel.bottom)
        if self.channel.cost == "square":
            weight = 1.0 if self.channel.h is None else self.channel.h.astype(np.float64)
            weighted = add_lanes(weight * magnitudes)
            return 0.5 * float(squares.max()) / weighted if weighted > 0 else largest
        power = self.channel.power
        return largest / (n * power) if power >= 1 else largest * math.pow(n, -1.0 / power)

    def search(
        self, bits: int, grid: WeightGrid, metric: WeightMetric, narrow: bool, exact: bool
    ) -> tuple[float, float, float]:
        """Threshold (or limits) and mean error."""
        if grid == "uniform":
            return self._search_uniform(bits, metric == "noclipping")
        steps = float(1 << (bits - 1))
        codes = (narrow - steps, steps - 1.0)
        unclipped = max(self.floor, steps * max(self.channel.top / codes[1], self.channel.bottom / -codes[0]))
        if grid == "power_of_two":
            threshold = self._search_power_of_two(codes, steps, unclipped, metric == "noclipping")
        else:
            threshold = unclipped
            least = max(self.floor, self.least_useful) / steps
            all_code_zero = max(self.channel.top, self.channel.bottom) <= 0.5 * self.floor / steps
            if not (metric == "noclipping" or all_code_zero or self.channel.energy == 0):
                if exact:
                    threshold = self._sort_breakpoints(codes, least) * steps
                else:
                    threshold = search_scale(self.channel, codes, least, unclipped / steps).scale * steps
            threshold = min(self.cap, max(self.floor, float(np.float32(threshold))))
        return math.ldexp(threshold, self.exponent), 0.0, self.unit * self._error(threshold / steps, codes)

    def _error(self, scale: float, codes: Codes) -> float:
        """Cost of a grid by the definition of quantization: float32 quotient, code and value; float64 sums."""
        step = np.float32(scale)
        value = np.rint(np.clip(self.channel.x / step, np.float32(codes[0]), np.float32(codes[1]))) * step
        distance = np.abs(value.astype(np.float64) - self.channel.x.astype(np.float64))
        if self.channel.cost == "square":
            distance = distance * distance
        elif self.channel.cost == "power":
            # Element by element: NumPy's vectorized power may differ from the C library's in the last bit.
            distance = np.array([math.pow(d, self.channel.power) for d in distance.ravel()]).reshape(distance.shape)
        return add_lanes(distance if self.channel.h is None else self.channel.h.astype(np.float64) * distance)

    def _search_power_of_two(self, codes: Codes, steps: float, unclipped: float, no_clipping: bool) -> float:
        exponent = math.ceil(math.log2(unclipped))
        best = min(math.ldexp(1.0, exponent), self.cap)
        if no_clipping:
            return best
        least = self._error(best / steps, codes)
        for i in range(-1, OCTAVES):
            threshold = math.ldexp(1.0, exponent - i)
            if threshold < max(self.least_useful * 0.5, self.floor):
                break
            if threshold <= self.cap:
                cost = self._error(threshold / steps, codes)
                if cost < least or (cost == least and threshold < best):
                    best, least = threshold, cost
                if clipping_cost(self.channel, cost, threshold / steps) > 1.001 * least:
                    break
        return best

    def _sort_breakpoints(self, codes: Codes, least: float) -> float:
        """The scale of least squared error: every piece between breakpoints |x| / (k - 1/2), by prefix sums.

        Coming down from large scales, each breakpoint adds h|x| to sum(hkx) and h(2k - 1) to sum(hk^2). A piece costs
        at best sum(hx^2) - sum(hkx)^2 / sum(hk^2), at scale sum(hkx) / sum(hk^2).
        """
        x = self.channel.x.astype(np.float64).ravel()
        h = np.ones_like(x) if self.channel.h is None else self.channel.h.astype(np.float64).ravel()
        k = np.arange(1, -codes[0] + 1)
        reached = (k <= np.where(x < 0, -codes[0], codes[1])[:, None]) & ((h > 0) & (x != 0))[:, None]
        breakpoints = (np.abs(x)[:, None] / (k - 0.5))[reached]
        order = np.argsort(-breakpoints, kind="stable")
        cross = np.cumsum(np.broadcast_to((h * np.abs(x))[:, None], reached.shape)[reached][order])
        squares = np.cumsum((h[:, None] * (2 * k - 1))[reached][order])
        scales = cross / squares
        costs = np.where(scales >= least, self.channel.energy - cross * cross / squares, np.inf)
        best = int(np.argmin(costs))
        at_least = h @ (x - np.clip(np.rint(x / least), *codes) * least) ** 2
        return float(scales[best]) if costs[best] < at_least else least

    def _search_uniform(self, bits: int, no_clipping: bool) -> tuple[float, float, float]:
        channel, floor = self.channel, self.floor
        if no_clipping or channel.energy == 0 or channel.top + channel.bottom <= floor:
            low, high = channel.bottom, max(channel.top, floor - channel.bottom)
        else:
            low, high = search_uniform(channel, bits, floor)
        lower, upper = np.float32(0) - np.float32(min(low, self.cap)), np.float32(min(high, self.cap))
        # As in records/grid.py.
        steps = float((1 << bits) - 1)
        scale = np.float32((float(upper) - float(lower)) / steps)
        zero = min(steps, max(0.0, float(np.rint(-float(lower) / float(scale)))))
        error = self.unit * self._error(float(scale), (-zero, steps - zero))
        return math.ldexp(float(lower), self.exponent), math.ldexp(float(upper), self.exponent), error
