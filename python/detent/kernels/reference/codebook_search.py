"""Twin of `detent.kernels.codebook_search`: the same steps in plain NumPy, to the bit.

The kernel finds the best levels by halving ranges; here every pair of neighbours is tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detent.kernels.codebook_search import (
    CodebookMetric,
    CodebookScale,
    CodebookSearch,
    Scope,
    check_codebook_options,
    starting_thresholds,
)
from detent.kernels.reference.quantize import lut_fake_quantize
from detent.kernels.weight_divergence import split_rows

__all__ = ["choose_levels", "search_codebook"]

FloatArray = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

LOW, HIGH = -128, 127
CELLS = 512
LARGEST = 2.0**127
MOST_ROUNDS = 50
MOST_FITS = 10
LEAST_GAIN = 1e-4
RATIOS = np.arange(3, 41)
OCTAVES = range(1, -11, -1)


def search_codebook(
    w: FloatArray,
    *,
    bits: int,
    scale: CodebookScale = "symmetric",
    metric: CodebookMetric = "mse",
    axis: int | None = 0,
    scope: Scope = "tensor",
    weights: FloatArray | None = None,
    thresholds: FloatArray | None = None,
    min_threshold: float = 2.0**-16,
) -> CodebookSearch:
    """Twin of `kernels.codebook_search.search_codebook`."""
    check_codebook_options(bits, scale, metric, scope, min_threshold, weights is not None)
    values = split_rows(w, axis, None)
    importance = np.ones_like(values) if weights is None else split_rows(weights, axis, None)
    rows = [Row.of(x, h) for x, h in zip(values, importance, strict=True)]
    floor = float(np.float32(min_threshold))
    together = [slice(0, len(rows))] if scope == "tensor" else [slice(c, c + 1) for c in range(len(rows))]
    found: list[tuple[FloatArray, npt.NDArray[np.int64]]]
    if thresholds is None:
        starts = starting_thresholds(w, bits, scale, axis, weights, min_threshold)
        found = [search(rows[part], starts[:, part], bits, scale == "power_of_two", floor) for part in together]
    else:
        kept = [(rows[part], thresholds[part]) for part in together]
        found = [(limits, choose_levels(*cells_of(some, limits), 1 << bits)) for some, limits in kept]
    limits = np.concatenate([limits for limits, _ in found])
    tables = np.array([levels for _, levels in found], np.float32)
    errors = [
        error_by_definition(x, h, threshold, tables[c % len(tables)])
        for c, (x, h, threshold) in enumerate(zip(values, importance, limits, strict=True))
    ]
    return CodebookSearch(bits=bits, thresholds=limits, tables=tables, errors=np.array(errors))


@dataclass(frozen=True)
class Row:
    """One channel: its values in ascending order, and sums of h, h x, h x^2 over those before each."""

    x: Vector
    weight: Vector
    first: Vector
    second: Vector

    @classmethod
    def of(cls, values: FloatArray, importance: FloatArray) -> Row:
        order = np.lexsort((importance, values))
        x, h = values[order].astype(np.float64), importance[order].astype(np.float64)
        return cls(x, *(np.concatenate([[0.0], np.cumsum(terms)]) for terms in (h, h * x, h * x * x)))

    def fit(self, levels: npt.NDArray[np.int64], step: float) -> tuple[float, float, float]:
        """Cost of a step; and, while every value keeps its level, the least cost and the step that has it."""
        bounds = step * (0.5 * (levels[:-1] + levels[1:]))
        ends = np.concatenate([[0], np.searchsorted(self.x, bounds, side="right"), [len(self.x)]])
        products, squares = 0.0, 0.0
        for t, h, hx in zip(levels.tolist(), np.diff(self.weight[ends]), np.diff(self.first[ends]), strict=True):
            products += t * float(hx)
            squares += t * t * float(h)
        energy = float(self.second[-1])
        cost = energy - step * (2.0 * products - step * squares)
        if not (products > 0 and squares > 0):
            return cost, cost, step
        return cost, energy - products * (products / squares), products / squares


def search(
    rows: list[Row], starts: FloatArray, bits: int, powers: bool, floor: float
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Thresholds and levels of channels that share a codebook, from the best of the starts."""
    found = [improve(rows, start, starts[0], 1 << bits, powers, floor) for start in starts]
    best = min(range(len(found)), key=lambda i: found[i][2])
    return found[best][0], found[best][1]


def improve(
    rows: list[Row], start: FloatArray, unclipped: FloatArray, count: int, powers: bool, floor: float
) -> tuple[FloatArray, npt.NDArray[np.int64], float]:
    """Levels for thresholds and thresholds for levels in turns, until that gains nothing."""
    thresholds, levels, cost = start, np.zeros(0, np.int64), np.inf
    for turn in range(MOST_ROUNDS):
        better = choose_levels(*cells_of(rows, thresholds), count)
        if np.array_equal(better, levels):
            break
        moved, total = [], 0.0
        for row, threshold, widest in zip(rows, thresholds, unclipped, strict=True):
            best, least = move_threshold(row, better, threshold, widest, powers, floor, anywhere=turn == 0)
            moved.append(best)
            total += least
        if not total < cost:
            break
        settled = turn > 0 and cost - total <= LEAST_GAIN * cost
        thresholds, levels, cost = np.array(moved, np.float32), better, total
        if settled:
            break
    return thresholds, levels, cost


def cells_of(rows: list[Row], thresholds: FloatArray) -> tuple[Vector, Vector, Vector]:
    """Sums of weight, weight x v and weight x v^2 over cells half a unit wide, v in units of each channel's step."""
    weight, first, second = np.zeros(CELLS), np.zeros(CELLS), np.zeros(CELLS)
    for row, threshold in zip(rows, thresholds, strict=True):
        step = step_of(threshold)
        cell = np.clip(np.floor(2.0 * row.x / step) + CELLS // 2, 0, CELLS - 1).astype(np.int64)
        np.add.at(weight, cell, step * step * np.diff(row.weight))
        np.add.at(first, cell, step * np.diff(row.first))
        np.add.at(second, cell, np.diff(row.second))
    return weight, first, second


def choose_levels(weight: Vector, first: Vector, second: Vector, count: int) -> npt.NDArray[np.int64]:
    """The `count` whole levels, zero among them, with the least squared distance of the values in the cells."""
    sums = [np.concatenate([[0.0], np.cumsum(terms)]) for terms in (weight, first, second)]

    def around(level: Vector, start: npt.ArrayLike, end: npt.ArrayLike) -> Vector:
        a, b, c = (s[np.asarray(end, np.int64)] - s[np.asarray(start, np.int64)] for s in sums)
        return np.asarray(c - level * (2.0 * b - level * a))

    def side(points: npt.NDArray[np.int64]) -> tuple[Vector, npt.NDArray[np.int64]]:
        # cost[k, p]: chains of k + 1 levels from the outer end to point p; the last point is zero.
        outwards = points[0] < 0
        outer, inner = points[None, :], points[:, None]
        low, high = np.minimum(outer, inner), np.maximum(outer, inner)
        half = CELLS // 2
        pairs = around(low.astype(float), 2 * low + half, low + high + half)
        pairs = pairs + around(high.astype(float), low + high + half, 2 * high + half)
        pairs = np.where(np.tri(len(points), k=-1, dtype=bool), pairs, np.inf)
        edge = 2 * points + half
        ends = (0, edge) if outwards else (edge, CELLS)
        cost = np.full((min(count, len(points)), len(points)), np.inf)
        before = np.zeros(cost.shape, np.int64)
        cost[0] = around(points.astype(float), *np.broadcast_arrays(*ends))
        for k in range(1, len(cost)):
            totals = cost[k - 1] + pairs
            before[k] = totals.argmin(axis=1)
            cost[k] = totals.min(axis=1)
        return cost, before

    def chain(points: npt.NDArray[np.int64], before: npt.NDArray[np.int64], k: int) -> list[int]:
        p, levels = len(points) - 1, []
        for row in range(k - 1, -1, -1):
            levels.append(int(points[p]))
            p = before[row, p]
        return levels[::-1]

    below, above = np.arange(LOW, 1), np.arange(HIGH, -1, -1)
    (cost_below, from_below), (cost_above, from_above) = side(below), side(above)
    splits = [k for k in range(1, len(cost_below) + 1) if 1 <= count + 1 - k <= len(cost_above)]
    k = splits[int(np.argmin([cost_below[k - 1, -1] + cost_above[count - k, -1] for k in splits]))]
    return np.array(chain(below, from_below, k) + chain(above, from_above, count + 1 - k)[-2::-1], np.int64)


def move_threshold(
    row: Row,
    levels: npt.NDArray[np.int64],
    threshold: np.float32,
    unclipped: np.float32,
    powers: bool,
    floor: float,
    *,
    anywhere: bool,
) -> tuple[np.float32, float]:
    """The threshold of one channel that suits the levels best, and its cost; the present one where none is better."""
    least = row.fit(levels, step_of(threshold))[0]
    if not row.x.any():
        return threshold, least
    if powers:
        wanted = [float(np.ldexp(float(unclipped), k)) for k in OCTAVES]
        candidates = [np.float32(power) for power in wanted if floor <= power <= LARGEST]
    else:
        candidates = [real_threshold(row, levels, threshold, unclipped if anywhere else None, floor)]
    for candidate in candidates:
        cost = row.fit(levels, step_of(candidate))[0]
        if cost < least:
            threshold, least = candidate, cost
    return threshold, least


def real_threshold(
    row: Row, levels: npt.NDArray[np.int64], threshold: np.float32, unclipped: np.float32 | None, floor: float
) -> np.float32:
    """The best of a dense grid and the present threshold, then the closed form until values stay with their levels."""
    steps = [step_of(threshold)]
    if unclipped is not None:
        steps += [step_of(unclipped) * float(ratio) / 32 for ratio in RATIOS]
    fits = [row.fit(levels, step) for step in steps]
    step = min(fits, key=lambda fit: fit[1])[2]
    kept, least = step, np.inf
    for _ in range(MOST_FITS):
        cost, _, fitted = row.fit(levels, step)
        if not cost < least:
            break
        kept, least, step = step, cost, fitted
    nearest: np.float32 = np.float32(min(max(128.0 * kept, floor), LARGEST))
    return nearest


def step_of(threshold: np.float32) -> float:
    """Unit of the levels."""
    return float(np.float32(threshold) / np.float32(128))


def error_by_definition(x: FloatArray, h: FloatArray, threshold: np.float32, table: FloatArray) -> float:
    """Mean of h (Q(x) - x)^2, summed in order."""
    scale = np.array([threshold / np.float32(128)], np.float32)
    difference = lut_fake_quantize(x, scale, table).astype(np.float64) - x
    return float(np.cumsum(h.astype(np.float64) * difference * difference)[-1] / x.size)
