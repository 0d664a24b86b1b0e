"""Twin of `detent.kernels.soft_rounding`: the same bits, including the order in which the regularizer is added up."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detent.kernels.reference.float_functions import exp_of, power_of
from detent.kernels.soft_rounding import Adam, SoftGrid

__all__ = ["soft_gradients", "soft_round", "soft_step"]

Floats = npt.NDArray[np.float32]

SLICE = 4096
LANES = 16
f32 = np.float32


class _Rows(NamedTuple):
    """Steps and limits, one entry a row, shaped to broadcast."""

    scale: Floats
    lower: Floats
    upper: Floats


def soft_round(base: Floats, v: Floats, grid: SoftGrid, *, out: Floats | None = None) -> Floats:
    """Twin of `kernels.soft_rounding.soft_round`."""
    rows = _rows(grid)
    h = np.clip(_sigmoid(v)[0] * f32(1.2) - f32(0.1), f32(0), f32(1))
    values: Floats = np.clip(base + h, rows.lower, rows.upper) * rows.scale
    if out is not None:
        out[...] = values
    return values


def soft_gradients(
    gradients: Floats, base: Floats, v: Floats, grid: SoftGrid, *, beta: float, weight: float
) -> tuple[Floats, float]:
    """Twin of `kernels.soft_rounding.soft_gradients`."""
    rows = _rows(grid)
    s, steep = _sigmoid(v)
    raw = s * f32(1.2) - f32(0.1)
    h = np.clip(raw, f32(0), f32(1))
    place = base + h
    slope = np.where((place < rows.lower) | (place > rows.upper), f32(0), gradients * rows.scale)
    total = 0.0
    if f32(weight) != 0:
        u = f32(2) * h - f32(1)
        size = np.abs(u)
        power = power_of(size, f32(beta) - f32(1))
        push = f32(weight) * (f32(2) * f32(beta) * power)
        slope = slope + np.where(u < 0, push, -push)
        total = float(f32(weight)) * _sum(f32(1) - power * size)
    return np.where((raw < 0) | (raw > 1), f32(0), slope * (f32(1.2) * steep)), total


def soft_step(
    gradients: Floats,
    base: Floats,
    v: Floats,
    moments: tuple[Floats, Floats],
    grid: SoftGrid,
    *,
    beta: float,
    weight: float,
    adam: Adam,
) -> float:
    """Twin of `kernels.soft_rounding.soft_step`."""
    found, regularizer = soft_gradients(gradients, base, v, grid, beta=beta, weight=weight)
    first, second = moments
    corrections = [1.0 - math.pow(decay, adam.step) for decay in adam.decays]
    step, root = f32(adam.rate / corrections[0]), f32(1.0 / math.sqrt(corrections[1]))
    first += (found - first) * f32(1.0 - adam.decays[0])
    second[...] = second * f32(adam.decays[1]) + found * found * f32(1.0 - adam.decays[1])
    v -= step * (first / (np.sqrt(second) * root + f32(adam.epsilon)))
    return regularizer


def _rows(grid: SoftGrid) -> _Rows:
    zeros = np.asarray(grid.zero_point)[:, None]
    lower, upper = (np.asarray(limit - zeros, np.float32) for limit in (grid.qmin, grid.qmax))
    return _Rows(np.asarray(grid.scale)[:, None], lower, upper)


def _sigmoid(v: Floats) -> tuple[Floats, Floats]:
    """The sigmoid and its derivative."""
    small = exp_of(-np.abs(v))
    inverse = f32(1) / (f32(1) + small)
    rest = small * inverse
    return np.where(v < 0, rest, inverse), rest * inverse


def _sum(terms: Floats) -> float:
    """Slices of each row, lanes within a slice."""
    rows, columns = terms.shape
    total = 0.0
    for row in range(rows):
        for first in range(0, columns, SLICE):
            part = terms[row, first : first + SLICE].astype(np.float64)
            lanes = np.zeros(LANES)
            for group in np.pad(part, (0, -len(part) % LANES)).reshape(-1, LANES):
                lanes = lanes + group
            while len(lanes) > 1:
                lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
            total += float(lanes[0])
    return total
