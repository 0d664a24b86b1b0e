"""A kernel's grid as its rows see it: the columns of each group of a layer, and the way back to the kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from detent.graph import GraphNode
from detent.graph.patches import kernel_rows
from detent.kernels.rounding import AffineColumns, CodebookColumns, ColumnGrids
from detent.records.grid import Grid

__all__ = ["KernelRows", "values_of"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelRows:
    """Rows and columns of a kernel and the grids of its elements.

    Args:
        layer: a layer the kernel belongs to, see `graph.patches.has_rows`.
        shape: of the kernel.
        grid: its grid.
    """

    layer: GraphNode
    shape: tuple[int, ...]
    grid: Grid

    def on(self, grid: Grid) -> KernelRows:
        """The same rows on another grid."""
        return replace(self, grid=grid)

    def of(self, kernel: Array) -> Array:
        """The rows of an array shaped like the kernel: `[groups, C_out / groups, d]`."""
        return kernel_rows(self.layer, kernel)

    def back(self, rows: Array) -> Array:
        """The array shaped like the kernel whose rows these are."""
        # Where each element of the rows stands in the kernel is what the rows of its places say.
        places = self.of(np.arange(int(np.prod(self.shape))).reshape(self.shape))
        kernel = np.empty(places.size, rows.dtype)
        kernel[places.reshape(-1)] = rows.reshape(-1)
        return kernel.reshape(self.shape)

    def grids(self) -> list[ColumnGrids]:
        """The grids of the rows of each group."""
        return [self._grids(entries) for entries in self.of(self._entries())]

    def _entries(self) -> npt.NDArray[np.int64]:
        """For each element of the kernel, which of the grid's steps it has."""
        grid = self.grid
        if grid.axis is None:
            return np.zeros(self.shape, np.int64)
        entries = np.arange(self.shape[grid.axis]).reshape(
            [-1 if a == grid.axis else 1 for a in range(len(self.shape))]
        )
        if grid.group_size is not None:
            axis = 1 if grid.axis == 0 else 0
            inputs = np.arange(self.shape[axis]) // grid.group_size
            along = inputs.reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
            entries = entries * (self.shape[axis] // grid.group_size) + along
        return np.broadcast_to(entries, self.shape)

    def _grids(self, entries: npt.NDArray[np.int64]) -> ColumnGrids:
        """The grids of some rows, from which step each element has."""
        _, first, group_of_column = np.unique(entries[0], return_index=True, return_inverse=True)
        chosen, grid = entries[:, first], self.grid
        scale = np.ascontiguousarray(grid.scale[chosen])
        groups = group_of_column.reshape(-1).astype(np.int32) if len(first) > 1 else None
        if grid.table is not None:
            table = grid.table[None] if grid.table.ndim == 1 else np.ascontiguousarray(grid.table[chosen[:, 0]])
            return CodebookColumns(scale=scale, table=table, group_of_column=groups)
        return AffineColumns(
            scale=scale,
            zero_point=np.ascontiguousarray(grid.zero_point[chosen]),
            qmin=grid.qmin,
            qmax=grid.qmax,
            group_of_column=groups,
        )


def values_of(grids: ColumnGrids, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """What codes `[rows, d]` stand for, float64."""
    scale = np.asarray(grids.scale, np.float64)
    groups = np.zeros(codes.shape[1], int) if grids.group_of_column is None else np.asarray(grids.group_of_column)
    if isinstance(grids, CodebookColumns):
        tables = np.asarray(grids.table, np.float64)
        table = np.broadcast_to(tables, (len(codes), tables.shape[1]))
        levels: npt.NDArray[np.float64] = np.take_along_axis(table, codes.astype(np.int64), axis=1)
        return levels * scale[:, groups]
    found: npt.NDArray[np.float64] = (codes - np.asarray(grids.zero_point)[:, groups]) * scale[:, groups]
    return found
