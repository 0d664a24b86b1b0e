"""Rounding of one layer in closed form: GPTQ towards what the layer should give, then code by code, or exactly.

Frantar et al. 2022, arXiv:2210.17323, algorithm 1, on the Hessian of Frantar and Alistarh 2022, arXiv:2208.11580. What
is rounded is not the kernel itself but the one that suits the inputs as the quantized layers before give them
(`rounding.objective`), held to the float kernel by the damping: W + (B - W H) (H + a I)^-1. Between descents, the step
of each channel is fitted to its codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.config import GptqConfig
from detent.graph.patches import sum_by_step
from detent.kernels.factor import inverse_factor, multiply
from detent.kernels.rounding import ColumnGrids, descend, round_columns, search_codes
from detent.records.grid import Grid
from detent.records.grid_values import scaled
from detent.rounding.objective import Objective
from detent.rounding.rows import KernelRows, values_of

__all__ = ["Rounded", "round_kernel"]

_LEAST_FACTOR: Final = 0.5
_MOST_FACTOR: Final = 2.0
"""Steps that a fit would change by more stay as they are: their rows are next to nothing."""

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounded:
    """The codes of a kernel and the grid they are on.

    Args:
        codes: int32, shaped like the kernel.
        grid: the kernel's, with other limits where steps were fitted.
        dead: columns, of all groups, whose inputs never differ: nothing tells how to round them.
    """

    codes: Codes
    grid: Grid
    dead: int


def round_kernel(
    kernel: Floats, former: npt.NDArray[Any], rows: KernelRows, objective: Objective, options: GptqConfig
) -> Rounded:
    """Codes of a kernel for the least cost at the layer's output.

    Args:
        kernel: float32, as the layer has it.
        former: its codes so far, where the search begins a second time; no row ends worse than with these.
        rows: its rows and their grids.
        objective: what they cost.
        options: of the rounding.
    """
    systems = [_System.of(weights, objective, group, options) for group, weights in enumerate(rows.of(kernel))]
    begun = rows.of(former.astype(np.int32))
    parts = zip(systems, begun, rows.grids(), strict=True)
    codes = [system.round(before, grids) for system, before, grids in parts]
    for _ in range(0 if rows.grid.keeps_powers_of_two else options.refits):
        rows = rows.on(scaled(rows.grid, _fitting(systems, codes, rows)))
        codes = [system.descend(q, grids) for system, q, grids in zip(systems, codes, rows.grids(), strict=True)]
    dead = int((np.diagonal(objective.hessian, axis1=1, axis2=2) <= objective.noise).sum())
    return Rounded(codes=rows.back(np.stack(codes)), grid=rows.grid, dead=dead)


def _fitting(systems: Sequence[_System], codes: Sequence[Codes], rows: KernelRows) -> Doubles:
    """What to multiply the limits of each channel by so that these codes cost least: `[channels]` or `[1]`.

    For values q and what they stand for t, the cost of f q is least at f = t H q / q H q.
    """
    fits = [system.fit(q, grids) for system, q, grids in zip(systems, codes, rows.grids(), strict=True)]
    one_step = rows.grid.axis is None
    along, across = (sum_by_step(rows.layer, np.stack(part), one_step=one_step) for part in zip(*fits, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(across > 0, along / across, 1.0)
    return np.where((factors >= _LEAST_FACTOR) & (factors <= _MOST_FACTOR), factors, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _System:
    """The rounding of the rows of one group.

    Args:
        target: what is rounded, float32 `[rows, d]`.
        hessian: H, damped.
        options: of the rounding.
    """

    target: Floats
    hessian: Doubles
    options: GptqConfig

    @classmethod
    def of(cls, weights: Floats, objective: Objective, group: int, options: GptqConfig) -> _System:
        """The kernel that suits the inputs, held to the float one by the damping."""
        hessian, cross, noise = objective.hessian[group].copy(), objective.cross[group].copy(), objective.noise[group]
        unknown = np.diagonal(hessian) <= noise
        hessian[unknown], hessian[:, unknown], cross[:, unknown] = 0, 0, 0
        # What noise adds to the matrix has no eigenvalue above its trace.
        amount = max(options.damping * float(np.diagonal(hessian).mean()), float(noise.sum())) or 1.0
        damped = hessian + amount * np.eye(len(hessian))
        wide = weights.astype(np.float64)
        missing = cross - multiply(wide, hessian)
        factor = inverse_factor(damped)
        moved = multiply(multiply(missing, np.ascontiguousarray(factor.T)), factor)
        return cls(target=(wide + moved).astype(np.float32), hessian=damped, options=options)

    def round(self, former: Codes, grids: ColumnGrids) -> Codes:
        """Codes from a column update, or from the former ones where these end better, and the best of short rows."""
        order = np.arange(len(self.hessian))
        if self.options.order == "activation":
            order = np.argsort(-np.diagonal(self.hessian), kind="stable")
        inside = np.ascontiguousarray(self.hessian[np.ix_(order, order)])
        found = np.empty(self.target.shape, np.int32)
        found[:, order] = round_columns(
            np.ascontiguousarray(self.target[:, order]), inverse_factor(inside), _moved(grids, order)
        )
        starts = [self.descend(codes, grids) for codes in (found, np.ascontiguousarray(former))]
        costs = [self._costs(codes, grids) for codes in starts]
        return np.where((costs[1] < costs[0])[:, None], starts[1], starts[0])

    def descend(self, codes: Codes, grids: ColumnGrids) -> Codes:
        """Codes of which none is better alone; of short rows, of which no others are better."""
        if self.options.sweeps:
            codes, _ = descend(self.target, self.hessian, codes, grids, sweeps=self.options.sweeps)
        if len(self.hessian) <= self.options.exact_columns:
            codes, _ = search_codes(self.target, self.hessian, codes, grids, most_values=self.options.exact_values)
        return codes

    def fit(self, codes: Codes, grids: ColumnGrids) -> tuple[Doubles, Doubles]:
        """t H q and q H q of each row, float64 `[rows]`."""
        values = values_of(grids, codes)
        through = multiply(values, self.hessian)
        return (through * self.target).sum(axis=1), (through * values).sum(axis=1)

    def _costs(self, codes: Codes, grids: ColumnGrids) -> Doubles:
        """What each row costs, float64 `[rows]`."""
        error = self.target.astype(np.float64) - values_of(grids, codes)
        return np.asarray((multiply(error, self.hessian) * error).sum(axis=1))


def _moved(grids: ColumnGrids, order: npt.NDArray[np.int64]) -> ColumnGrids:
    if grids.group_of_column is None:
        return grids
    return replace(grids, group_of_column=np.ascontiguousarray(np.asarray(grids.group_of_column)[order]))
