"""Twin of `detent.kernels.rounding`: the same bits, all rows at once and one column after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detent.kernels.rounding import CodebookColumns, Codes, ColumnGrids, Counts

__all__ = ["Column", "column_grid", "descend", "round_columns"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

LEAST_GAIN = 2.0**-20


@dataclass(frozen=True, eq=False)
class Column:
    """The grids of a column, one for each row; `table` is `[rows, k]`, or None for affine ones."""

    scale: Floats
    zero_point: npt.NDArray[np.int64]
    qmin: int
    qmax: int
    table: Floats | None

    def nearest(self, x: Doubles) -> npt.NDArray[np.int64]:
        """Codes nearest to x `[rows]`, rounded to float32 first."""
        with np.errstate(all="ignore"):
            quotients = x.astype(np.float32) / self.scale
            if self.table is None:
                distances = np.clip(np.rint(quotients).astype(np.float64) + self.zero_point, self.qmin, self.qmax)
                return np.where(np.isnan(distances), self.zero_point, distances).astype(np.int64)
        bounds = ((self.table[:, :-1].astype(np.float64) + self.table[:, 1:]) / 2).astype(np.float32)
        found: npt.NDArray[np.int64] = np.sum(bounds < quotients[:, None], axis=1)
        return found

    def values(self, codes: npt.NDArray[Any]) -> Doubles:
        """What codes `[rows]` stand for."""
        if self.table is None:
            return np.asarray((codes - self.zero_point).astype(np.float32) * self.scale, np.float32).astype(np.float64)
        levels = np.take_along_axis(self.table, codes[:, None], axis=1)[:, 0]
        return np.asarray(levels * self.scale + np.float32(0), np.float32).astype(np.float64)


def column_grid(grids: ColumnGrids, rows: int, column: int) -> Column:
    """The grids of one column."""
    group = 0 if grids.group_of_column is None else int(np.asarray(grids.group_of_column)[column])
    scale = np.broadcast_to(np.asarray(grids.scale)[:, group], rows)
    if isinstance(grids, CodebookColumns):
        levels = np.asarray(grids.table)
        table = np.broadcast_to(levels, (rows, levels.shape[1]))
        return Column(scale, np.zeros(rows, np.int64), 0, levels.shape[1] - 1, table)
    zeros = np.broadcast_to(np.asarray(grids.zero_point)[:, group], rows).astype(np.int64)
    return Column(scale, zeros, grids.qmin, grids.qmax, None)


def round_columns(weights: Floats, factor: Doubles, grids: ColumnGrids) -> Codes:
    """Twin of `kernels.rounding.round_columns`."""
    rows, columns = weights.shape
    codes = np.zeros(weights.shape, np.int32)
    state = weights.astype(np.float64)
    with np.errstate(all="ignore"):
        for c in range(columns):
            grid = column_grid(grids, rows, c)
            codes[:, c] = grid.nearest(state[:, c])
            errors = (state[:, c] - grid.values(codes[:, c])) / factor[c, c]
            state[:, c + 1 :] -= errors[:, None] * factor[c, c + 1 :]
    return codes


def descend(
    weights: Floats,
    hessian: Doubles,
    codes: Codes,
    grids: ColumnGrids,
    *,
    linear: Doubles | None = None,
    sweeps: int = 64,
) -> tuple[Codes, Counts]:
    """Twin of `kernels.rounding.descend`."""
    rows, columns = weights.shape
    better, changes = codes.copy(), np.zeros(rows, np.int64)
    columns_of = [column_grid(grids, rows, c) for c in range(columns)]
    slopes = np.zeros(weights.shape) if linear is None else -linear
    with np.errstate(all="ignore"):
        for c, grid in enumerate(columns_of):
            slopes -= (grid.values(codes[:, c]) - weights[:, c])[:, None] * hessian[c]
        for _ in range(sweeps):
            before = changes.copy()
            for c, grid in enumerate(columns_of):
                changed = _settle(grid, hessian[c], c, better, slopes)
                changes += changed
            if np.array_equal(changes, before):
                break
    return better, changes


def _settle(grid: Column, row: Doubles, c: int, codes: Codes, slopes: Doubles) -> npt.NDArray[np.bool_]:
    """Change the codes of one column where that lowers the loss, and tell where."""
    values = grid.values(codes[:, c])
    found = grid.nearest(values + slopes[:, c] / row[c])
    steps = grid.values(found) - values
    most = steps * row[c]
    gains: npt.NDArray[np.bool_] = steps * (2.0 * slopes[:, c] - most) > LEAST_GAIN * (steps * most)
    codes[gains, c] = found[gains]
    slopes[gains] -= steps[gains, None] * row
    return gains
