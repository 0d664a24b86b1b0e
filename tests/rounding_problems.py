"""Weights, moments of inputs and grids: problems for the kernels that round weights together."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from detent.kernels.quantize import dequantize, lut_dequantize
from detent.kernels.rounding import AffineColumns, CodebookColumns, ColumnGrids


class Problem(NamedTuple):
    """What is to be rounded: weights `[rows, columns]`, H and U with U^T U its inverse, and grids."""

    weights: np.ndarray
    hessian: np.ndarray
    factor: np.ndarray
    grids: ColumnGrids

    def values(self, codes: np.ndarray) -> np.ndarray:
        """What codes stand for, by the kernels that every runtime is compared with."""
        groups = self.grids.group_of_column
        group = np.zeros(codes.shape[1], np.int32) if groups is None else np.asarray(groups)
        scale = np.broadcast_to(np.asarray(self.grids.scale)[:, group], codes.shape).ravel().copy()
        if isinstance(self.grids, AffineColumns):
            zeros = np.broadcast_to(np.asarray(self.grids.zero_point)[:, group], codes.shape).ravel().copy()
            return dequantize(codes.reshape(-1), scale, zeros, axis=0).reshape(codes.shape)
        levels = np.asarray(self.grids.table)
        table = np.broadcast_to(levels, (codes.shape[0], levels.shape[1]))
        table = np.repeat(table, codes.shape[1], axis=0)
        return lut_dequantize(codes.reshape(-1).astype(np.uint8), scale, table, axis=0).reshape(codes.shape)

    def losses(self, codes: np.ndarray, linear: np.ndarray | None = None) -> np.ndarray:
        """The loss of each row."""
        e = self.weights.astype(np.float64) - self.values(codes)
        loss = np.einsum("ri,ij,rj->r", e, self.hessian, e)
        return loss if linear is None else loss - 2 * np.sum(linear * e, axis=1)

    @property
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest code."""
        if isinstance(self.grids, AffineColumns):
            return self.grids.qmin, self.grids.qmax
        return 0, np.asarray(self.grids.table).shape[1] - 1


def moments(columns: int, *, seed: int = 0, damping: float = 0.02) -> np.ndarray:
    """Second moments of correlated inputs with means."""
    rng = np.random.default_rng(seed)
    mix = np.eye(columns) + 0.5 * rng.normal(size=(columns, columns)) / max(1, columns) ** 0.5
    x = rng.normal(size=(2 * columns + 3, columns)) @ mix + 0.5
    h = x.T @ x / len(x)
    h += damping * np.mean(np.diag(h)) * np.eye(columns) if columns else 0.0
    return (h + h.T) / 2


def factor_of(hessian: np.ndarray) -> np.ndarray:
    """U, upper triangular with U^T U the inverse of H."""
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(hessian)).T)


def problem(
    rows: int,
    columns: int,
    *,
    bits: int = 4,
    groups: int = 1,
    codebook: bool = False,
    shared: bool = False,
    seed: int = 0,
) -> Problem:
    """A random problem; `shared` gives all rows the same grids."""
    rng = np.random.default_rng(seed)
    weights = rng.laplace(size=(rows, columns)).astype(np.float32)
    hessian = moments(columns, seed=seed)
    entries = 1 if shared else rows
    scale = (rng.uniform(0.5, 1.0, size=(entries, groups)) * 8 / 2**bits).astype(np.float32)
    group: Any = rng.integers(0, groups, columns).astype(np.int32) if groups > 1 else None
    grids: ColumnGrids
    if codebook:
        table = np.sort(rng.normal(size=(entries, 2**bits)) * 2 ** (bits - 2), axis=1).astype(np.float32)
        grids = CodebookColumns(scale=scale, table=table, group_of_column=group)
    else:
        low = -(2 ** (bits - 1))
        zeros = rng.integers(-1, min(2, low + 2**bits), size=scale.shape).astype(np.int32)
        grids = AffineColumns(scale=scale, zero_point=zeros, qmin=low, qmax=low + 2**bits - 1, group_of_column=group)
    return Problem(weights, hessian, factor_of(hessian), grids)
