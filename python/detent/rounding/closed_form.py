"""Rounding of one layer in closed form: GPTQ towards what the layer should give, then code by code, or exactly.

Frantar et al. 2022, arXiv:2210.17323, algorithm 1, on the Hessian of Frantar and Alistarh 2022, arXiv:2208.11580. What
is rounded is not the kernel itself but the one that suits the inputs as the quantized layers before give them
(`rounding.objective`), held to the float kernel by the damping: W + (B - W H) (H + a I)^-1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from detent.config import GptqConfig
from detent.kernels.factor import inverse_factor, multiply
from detent.kernels.rounding import ColumnGrids, descend, round_columns
from detent.rounding.objective import Objective
from detent.rounding.rows import KernelRows, values_of

__all__ = ["Rounded", "round_kernel"]

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounded:
    """The codes of a kernel.

    Args:
        codes: int32, shaped like the kernel.
        dead: columns, of all groups, whose inputs never differ: nothing tells how to round them.
    """

    codes: npt.NDArray[np.int32]
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
    of_groups, dead = [], 0
    parts = zip(rows.of(kernel), rows.of(former.astype(np.int32)), rows.grids(), strict=True)
    for group, (weights, codes, grids) in enumerate(parts):
        hessian = objective.hessian[group]
        diagonal = np.diagonal(hessian)
        dead += int((diagonal <= 0).sum())
        amount = options.damping * (float(diagonal.mean()) or 1.0)
        damped = hessian + amount * np.eye(len(hessian))
        target = _target(weights, objective.cross[group], hessian, damped)
        of_groups.append(_round(target, damped, grids, codes, options))
    return Rounded(codes=rows.back(np.stack(of_groups)), dead=dead)


def _target(weights: Floats, cross: Doubles, hessian: Doubles, damped: Doubles) -> Floats:
    """What is to be rounded, float32 `[rows, d]`."""
    wide = weights.astype(np.float64)
    missing = cross - multiply(wide, hessian)
    factor = inverse_factor(damped)
    moved = multiply(multiply(missing, np.ascontiguousarray(factor.T)), factor)
    return (wide + moved).astype(np.float32)


def _round(target: Floats, damped: Doubles, grids: ColumnGrids, former: Codes, options: GptqConfig) -> Codes:
    order = np.arange(len(damped))
    if options.order == "activation":
        order = np.argsort(-np.diagonal(damped), kind="stable")
    inside = np.ascontiguousarray(damped[np.ix_(order, order)])
    found = np.empty(target.shape, np.int32)
    found[:, order] = round_columns(
        np.ascontiguousarray(target[:, order]), inverse_factor(inside), _moved(grids, order)
    )
    starts = [found, former]
    if options.sweeps:
        starts = [descend(target, damped, codes, grids, sweeps=options.sweeps)[0] for codes in starts]
    costs = [_costs(target, damped, grids, codes) for codes in starts]
    return np.where((costs[1] < costs[0])[:, None], starts[1], starts[0])


def _costs(target: Floats, damped: Doubles, grids: ColumnGrids, codes: Codes) -> Doubles:
    """What each row of codes costs, float64 `[rows]`."""
    error = target.astype(np.float64) - values_of(grids, codes)
    return np.asarray((multiply(error, damped) * error).sum(axis=1))


def _moved(grids: ColumnGrids, order: npt.NDArray[np.int64]) -> ColumnGrids:
    if grids.group_of_column is None:
        return grids
    return replace(grids, group_of_column=np.ascontiguousarray(np.asarray(grids.group_of_column)[order]))
