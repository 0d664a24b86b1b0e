"""Multiples: of a kernel by the gains of its channels, and of a grid's limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from detent.records.grid import Grid

__all__ = ["multiplied", "round_scaled", "scaled"]

FloatArray = npt.NDArray[np.float32]


def multiplied(values: FloatArray, gain: FloatArray | None, axis: int | None) -> FloatArray:
    """Values times the gain of their channel along `axis`, or one gain for all; None changes nothing."""
    if gain is None:
        return values
    along = [1] * values.ndim
    if axis is not None:
        along[axis] = -1
    return values * gain.reshape(along)


def scaled(grid: Grid, factors: npt.ArrayLike) -> Grid:
    """The grid with its limits multiplied.

    Args:
        grid: any grid; power-of-two limits stay so only with powers of two.
        factors: positive, one number or `[channels]`; all groups of a channel are multiplied by its factor.
    """
    factor = np.atleast_1d(np.asarray(factors, np.float64))
    each = factor if len(factor) == 1 else np.repeat(factor, grid.size // len(factor))

    def times(limits: FloatArray) -> FloatArray:
        return (limits.astype(np.float64) * each).astype(np.float32)

    if grid.threshold is not None:
        return replace(grid, threshold=times(grid.threshold))
    assert grid.lower is not None
    assert grid.upper is not None
    return replace(grid, lower=times(grid.lower), upper=times(grid.upper))


def round_scaled(grid: Grid, values: FloatArray, factors: npt.NDArray[np.float64]) -> FloatArray:
    """Values rounded on a grid with its limits multiplied, for several sets of factors at once.

    Args:
        grid: any grid.
        values: float32, of the tensor the grid is for.
        factors: `[sets, channels]`, or `[sets, 1]` for a grid without channels; see `scaled`.

    Returns:
        float32 `[sets, *values.shape]`.
    """
    sets = len(factors)
    first = values[None] if grid.axis is None else np.moveaxis(values, grid.axis, 0)
    # One grid whose channels are those of all sets.
    wide = replace(
        grid,
        axis=0,
        threshold=None if grid.threshold is None else np.tile(grid.threshold, sets),
        lower=None if grid.lower is None else np.tile(grid.lower, sets),
        upper=None if grid.upper is None else np.tile(grid.upper, sets),
        table=grid.table if grid.table is None or grid.table.ndim == 1 else np.tile(grid.table, (sets, 1)),
    )
    every = np.ascontiguousarray(np.broadcast_to(first, (sets, *first.shape))).reshape(-1, *first.shape[1:])
    rounded = scaled(wide, factors.reshape(-1)).round(every).reshape(sets, *first.shape)
    return rounded[:, 0] if grid.axis is None else np.moveaxis(rounded, 1, grid.axis + 1)
