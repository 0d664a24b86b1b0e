"""The kl metric of the weight search: it compares distributions, so it goes through histograms.

A channel has few values, often a hundred. In fine bins they would all stand alone, and the divergence would measure the
sample instead of the distribution; so the bins follow Rice's rule, about n^(1/3) to 2 n^(1/3) of them on each side of
zero. And when almost everything is clipped, what is left has no shape to compare and the divergence vanishes: so
thresholds below the median magnitude, or below 1/16 of the largest (as in TensorRT's calibrator), are not tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.kernels.histogram_search import search_histogram
from detent.kernels.weight_options import FloatArray, WeightGrid, WeightSearch

__all__ = ["search_divergence", "split_rows"]

LEAST_SHARE: Final = 2.0**-4
MOST_BINS_LOG2: Final = 12


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
    rows: FloatArray, bits: Sequence[int], grid: WeightGrid, narrow_range: bool, min_threshold: float
) -> list[WeightSearch]:
    """Find the grids with the least Kullback-Leibler divergence for each row, from its histogram.

    Raises:
        ValueError: a row holds NaN or infinity.
    """
    bins_log2 = min(MOST_BINS_LOG2, math.ceil(math.log2(rows.shape[1]) / 3) + 1)
    found = []
    for channel, row in enumerate(rows):
        values = row.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"weights of row {channel} hold NaN or infinity")
        magnitudes = np.abs(values)
        largest = float(magnitudes.max())
        exponent = math.frexp(max(largest, min_threshold))[1] - bins_log2
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
                min_threshold=max(min_threshold, LEAST_SHARE * largest, float(np.median(magnitudes))),
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
