"""Weights rounded with a view to what they do together: a matrix H says what the errors of a row cost, e H e^T.

H is the second moment of the inputs of a layer (`detent.kernels.products.moments`) or any other quadratic model of a
loss. Rows are the output channels; their losses are independent of each other, and `detent.kernels.products.forms`
gives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["AffineColumns", "CodebookColumns", "ColumnGrids", "descend", "round_columns", "search_codes"]

Codes = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineColumns:
    """Affine grids of a matrix of weights: `value = (code - zero_point) * scale`.

    Args:
        scale: steps, float32 `[1 or rows, groups]`, finite and positive.
        zero_point: codes of zero, int32 with the shape of `scale`, each in `qmin..qmax`.
        qmin: lowest code, at least -2^15.
        qmax: highest code, at most 2^16 - 1.
        group_of_column: which entry of `scale` belongs to each column, int32 `[columns]`; None if there is one group.
    """

    scale: ArrayLike
    zero_point: ArrayLike
    qmin: int
    qmax: int
    group_of_column: ArrayLike | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class CodebookColumns:
    """Codebooks of a matrix of weights: `value = table[code] * scale`.

    Args:
        scale: multipliers, float32 `[1 or rows, groups]`, finite and positive.
        table: levels, float32 `[1 or rows, k]`, 1 to 256 finite ones in increasing order.
        group_of_column: which entry of `scale` belongs to each column, int32 `[columns]`; None if there is one group.
    """

    scale: ArrayLike
    table: ArrayLike
    group_of_column: ArrayLike | None = None


ColumnGrids = AffineColumns | CodebookColumns


def round_columns(weights: ArrayLike, factor: ArrayLike, grids: ColumnGrids) -> Codes:
    """Round columns from the first to the last, later ones making up for the errors of earlier ones.

    Each column goes to the nearest of its grid, then columns behind it move by what lowers the loss most: GPTQ (Frantar
    et al. 2022, arXiv:2210.17323, algorithm 1), which is OBQ (Frantar and Alistarh 2022, arXiv:2208.11580, equation 3)
    in the order given. To round in another order, permute columns, H and `group_of_column` alike.

    Args:
        weights: float32 `[rows, columns]` in C order, finite.
        factor: float64 `[columns, columns]` in C order: U, upper triangular with a positive diagonal, with U^T U the
            inverse of H (`numpy.linalg.cholesky(numpy.linalg.inv(h)).T`). What is below the diagonal is not read.
        grids: the grid of each weight.

    Returns:
        Codes, int32 `[rows, columns]`.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    return _core.round_columns(as_array(weights, "weights"), as_array(factor, "factor"), *_described(grids))


def descend(
    weights: ArrayLike,
    hessian: ArrayLike,
    codes: ArrayLike,
    grids: ColumnGrids,
    *,
    linear: ArrayLike | None = None,
    sweeps: int = 64,
) -> tuple[Codes, Counts]:
    """Lower the loss by changing one code at a time, column after column, until none is better alone.

    The loss of a row w of values q is `(w - q) H (w - q)^T - 2 linear (w - q)^T`. It falls with every change; a change
    that gains less than a millionth of what its distance costs is not made. Where H has an inverse, weights
    `w - linear H^-1` without `linear` describe the same minimum; with `linear`, H may be singular. It serves targets
    other than w itself: with inputs x behind the weights w and y behind q, the loss |w x - q y|^2 has H = y y^T and
    linear = w (y - x) y^T.

    Args:
        weights: float32 `[rows, columns]` in C order, finite.
        hessian: H, float64 `[columns, columns]` in C order, symmetric with a positive diagonal.
        codes: where to begin, int32 `[rows, columns]` in C order, on their grids.
        grids: the grid of each weight.
        linear: float64 `[rows, columns]` in C order, finite; None for zeros.
        sweeps: most times that each column is visited.

    Returns:
        Codes, int32 `[rows, columns]`, and how many changes were made in each row, int64 `[rows]`.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    better, changes = _core.descend(
        as_array(weights, "weights"),
        as_array(hessian, "hessian"),
        as_array(codes, "codes"),
        None if linear is None else as_array(linear, "linear"),
        sweeps,
        *_described(grids),
    )
    return better, changes


def search_codes(
    weights: ArrayLike,
    hessian: ArrayLike,
    codes: ArrayLike,
    grids: ColumnGrids,
    *,
    linear: ArrayLike | None = None,
    most_values: int = 1_000_000,
) -> tuple[Codes, Flags]:
    """Find the codes of least loss among all, for few columns: branch and bound after Schnorr and Euchner.

    The loss is that of `descend`. Kernels of depthwise convolutions have 9 or 25 columns; what is found with more
    depends on how good the codes are that the search begins with.

    Args:
        weights: float32 `[rows, columns]` in C order, finite, at most 64 columns.
        hessian: H, float64 `[columns, columns]` in C order, symmetric and positive definite.
        codes: where to begin, int32 `[rows, columns]` in C order, on their grids; `descend` gives good ones.
        grids: the grid of each weight.
        linear: float64 `[rows, columns]` in C order, finite; None for zeros.
        most_values: most values that a row tries, over all its columns.

    Returns:
        Codes, int32 `[rows, columns]`, never worse than those given, and for each row whether they are proved to be the
        best, bool `[rows]`.

    Raises:
        ValueError: a wrong dtype, shape, layout or number, or H is not positive definite; the message says which.
        TypeError: not an array.
    """
    better, proved = _core.search_codes(
        as_array(weights, "weights"),
        as_array(hessian, "hessian"),
        as_array(codes, "codes"),
        None if linear is None else as_array(linear, "linear"),
        most_values,
        *_described(grids),
    )
    return better, proved


def _described(grids: ColumnGrids) -> tuple[Any, ...]:
    """Scale, zero points, table, groups, lowest and highest code."""
    scale = as_array(grids.scale, "scale")
    groups = None if grids.group_of_column is None else as_array(grids.group_of_column, "group_of_column")
    if isinstance(grids, CodebookColumns):
        return scale, None, as_array(grids.table, "table"), groups, 0, 0
    return scale, as_array(grids.zero_point, "zero_point"), None, groups, grids.qmin, grids.qmax
