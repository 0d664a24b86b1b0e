"""Threshold search on raw weights: per tensor, channel or group, for several bit widths in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from detent import _core
from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["WeightGrid", "WeightMetric", "WeightSearch", "search_weights"]

WeightGrid = Literal["power_of_two", "symmetric", "uniform"]
WeightMetric = Literal["noclipping", "mse", "mae", "lp", "kl", "hmse"]

Method = Literal["exact", "grid"]

FloatArray = npt.NDArray[np.float32]
ErrorArray = npt.NDArray[np.float64]

EXACT_BITS: Final = 8
"""Widest codes for which the exact search is used."""

LEAST_POWER: Final = 0.5
MOST_POWER: Final = 6.0
_KL_BINS_LOG2: Final = 12
"""log2 of the histogram bins between zero and the power of two above the largest magnitude, for kl."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSearch:
    """The best grids of one bit width.

    Args:
        bits: code width.
        thresholds: float32 `[n]`, for power-of-two and symmetric grids; n counts channels, times groups, channel first.
        lowers: float32 `[n]`, lower limits of uniform grids, at most zero.
        uppers: float32 `[n]`, upper limits of uniform grids, at least zero.
        errors: float64 `[n]`, mean error per element by the metric (for noclipping: squared error).
        exact: no grid of this kind does better: proven, up to rounding the threshold to float32.
    """

    bits: int
    thresholds: FloatArray | None = None
    lowers: FloatArray | None = None
    uppers: FloatArray | None = None
    errors: ErrorArray
    exact: bool


def search_weights(
    w: ArrayLike,
    *,
    bits: Sequence[int],
    grid: WeightGrid,
    metric: WeightMetric,
    p: float = 2.0,
    axis: int | None = 0,
    group_size: int | None = None,
    weights: ArrayLike | None = None,
    narrow_range: bool = False,
    min_threshold: float = 2.0**-16,
    method: Method = "exact",
) -> list[WeightSearch]:
    """Find the grids with signed codes that lose least on each channel of `w`, for each bit width.

    With method "exact", symmetric grids of at most 8 bits for mse and hmse are globally optimal over all real
    thresholds, found by branch and bound over the breakpoints |x| / (k - 1/2) and the closed-form scale
    sum(h k x) / sum(h k^2) between them (csrc/search/exact_scale.h), then rounded to the nearest float32. Power-of-two
    grids try every useful power, whatever the method. All other searches take a dense grid of candidates, refined
    around the best ones.

    The result does not depend on the memory layout of `w`, which may have any strides, on threads or instruction set.

    Args:
        w: float32 weights of any shape.
        bits: code widths, each 2 to 16.
        grid: `"power_of_two"`, `"symmetric"` or `"uniform"`.
        metric: `"noclipping"` (the tightest grid that clips nothing), `"mse"`, `"mae"`, `"lp"` (mean |error|^p), `"kl"`
            (Kullback-Leibler divergence of each channel's histogram, as in `search_histogram`; slow) or `"hmse"`
            (squared error weighted by `weights`).
        p: power of lp, 0.5 to 6.
        axis: channel axis; None for one grid for the whole array.
        group_size: search one grid per so many elements of the input axis (axis 1 if `axis` is 0, axis 0 if it is 1).
        weights: importance of each element for hmse, float32, not negative, with the shape of `w`.
        narrow_range: drop the lowest code (power-of-two and symmetric grids).
        min_threshold: least threshold, or width of a uniform range, 2^-100 to 2^100; a channel of zeros gets it.
        method: `"exact"` or `"grid"`.

    Returns:
        One search per entry of `bits`.

    Raises:
        TypeError: `w` or `weights` is not an array on the CPU.
        ValueError: NaN or infinity (the channel is named), wrong dtype or shape, or an option that is unknown or out of
            range.
    """
    check_options(bits, grid, metric, method, p, narrow_range)
    values = as_array(w, "w")
    importance = None if weights is None else as_array(weights, "weights")
    if (importance is not None) != (metric == "hmse"):
        raise ValueError(f"metric 'hmse' takes `weights`, the others do not; got metric {metric!r}")
    if metric == "kl":
        return search_divergence(
            split_rows(values, axis, group_size), bits, grid, narrow_range=narrow_range, min_threshold=min_threshold
        )
    exact = method == "exact"
    first, second, errors = _core.search_weights(
        values, list(bits), grid, metric, p, axis, group_size, importance, narrow_range, min_threshold, exact
    )
    return [
        WeightSearch(
            bits=width,
            thresholds=None if second is not None else first[i],
            lowers=None if second is None else first[i],
            uppers=None if second is None else second[i],
            errors=errors[i],
            exact=is_exact(width, grid, metric, p, exact),
        )
        for i, width in enumerate(bits)
    ]


def check_options(bits: Sequence[int], grid: str, metric: str, method: str, p: float, narrow_range: bool) -> None:
    """Refuse what no search can honour.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    for width in bits:
        if isinstance(width, bool) or not isinstance(width, int) or not 2 <= width <= 16:
            raise ConfigError(f"bits of signed codes must be whole numbers in 2..16, got {width!r}")
    if grid not in get_args(WeightGrid):
        raise unknown_name("grid", grid, get_args(WeightGrid))
    if metric not in get_args(WeightMetric):
        raise unknown_name("metric", metric, get_args(WeightMetric))
    if method not in get_args(Method):
        raise unknown_name("method", method, get_args(Method))
    if not LEAST_POWER <= p <= MOST_POWER:
        raise ConfigError(f"p must be in {LEAST_POWER}..{MOST_POWER}, got {p!r}")
    if narrow_range and grid == "uniform":
        raise ConfigError("`narrow_range` is for power_of_two and symmetric grids")


def is_exact(bits: int, grid: str, metric: str, p: float, exact: bool) -> bool:
    """Whether the search proves that no other grid of the kind has less error."""
    if metric == "noclipping":
        return True
    if grid == "power_of_two":
        return metric != "kl" and (metric != "lp" or p >= 1)
    return exact and grid == "symmetric" and metric in ("mse", "hmse") and bits <= EXACT_BITS


def split_rows(w: npt.NDArray[Any], axis: int | None, group_size: int | None) -> FloatArray:
    """The values that share a grid, in C order, as rows `[n, size]`; channel first, then group.

    Raises:
        ValueError: the axis or the group size does not fit the shape, `w` is empty or not float32.
    """
    if w.dtype != np.float32:
        raise ValueError(
            f"w must have dtype float32, got {w.dtype}; convert it explicitly, detent never casts silently"
        )
    if w.size == 0:
        raise ValueError(f"w of shape {list(w.shape)} is empty")
    if axis is None:
        if group_size is not None:
            raise ValueError("group_size needs the channel axis: give `axis`")
        return w.reshape(1, -1)
    if not -w.ndim <= axis < w.ndim:
        raise ValueError(f"axis {axis} is outside w of shape {list(w.shape)}")
    rows = np.moveaxis(w, axis, 0)
    if group_size is None:
        return rows.reshape(w.shape[axis], -1)
    if w.ndim < 2 or axis % w.ndim > 1:
        raise ValueError(f"groups need at least two axes and `axis` 0 or 1, got axis {axis} of shape {list(w.shape)}")
    if group_size < 1 or rows.shape[1] % group_size:
        raise ValueError(f"group_size {group_size} does not divide the {rows.shape[1]} input channels of w")
    return rows.reshape(rows.shape[0] * (rows.shape[1] // group_size), -1)


def search_divergence(
    rows: FloatArray, bits: Sequence[int], grid: WeightGrid, *, narrow_range: bool, min_threshold: float
) -> list[WeightSearch]:
    """The kl metric: it compares distributions, so each row's histogram goes through the histogram search."""
    from detent.kernels.histogram_search import search_histogram

    found = []
    for channel, row in enumerate(rows):
        values = row.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"weights of row {channel} hold NaN or infinity")
        exponent = int(np.frexp(np.abs(values).max())[1]) - _KL_BINS_LOG2
        bins = np.floor(np.ldexp(values, -exponent)).astype(np.int64)
        found.append(
            search_histogram(
                np.bincount(bins - bins.min()),
                int(bins.min()),
                2.0**exponent,
                minimum=float(values.min()),
                maximum=float(values.max()),
                zeros=int(np.sum(values == 0)),
                bits=bits,
                grid=grid,
                metric="kl",
                signed=True,
                narrow_range=narrow_range,
                min_threshold=min_threshold,
            )
        )
    return [
        WeightSearch(
            bits=width,
            thresholds=None if grid == "uniform" else np.array([f[i].threshold for f in found], np.float32),
            lowers=np.array([f[i].lower for f in found], np.float32) if grid == "uniform" else None,
            uppers=np.array([f[i].upper for f in found], np.float32) if grid == "uniform" else None,
            errors=np.array([f[i].error for f in found], np.float64),
            exact=False,
        )
        for i, width in enumerate(bits)
    ]
