"""Twin of `detent.kernels.error`: the same bits, including the order in which errors are added."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from detent.kernels.groups import group_views, split_groups
from detent.kernels.reference.quantize import fake_quantize

__all__ = ["in_memory_order", "sum_channels", "tensor_error"]

FloatArray = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]

LANES = 16
MOST_SLICES = 64
MOST_PARTIALS = 65536
LEAST_RUN = 4096


def tensor_error(
    x: FloatArray,
    scale: FloatArray,
    zero_point: npt.NDArray[np.int32],
    qmin: int,
    qmax: int,
    *,
    p: float = 2.0,
    weights: FloatArray | None = None,
    axis: int | None = None,
    group_size: int | None = None,
) -> Sums:
    """Twin of `kernels.error.tensor_error`."""
    if group_size is not None:
        channel_axis, groups = split_groups(x.shape, axis, group_size)
        errors = np.empty(len(scale), np.float64)
        views = group_views(x, channel_axis, groups, "x")
        factors = views if weights is None else group_views(weights, channel_axis, groups, "weights")
        for (view, entries), (factor, _) in zip(views, factors, strict=True):
            errors[entries] = tensor_error(
                view,
                scale[entries],
                zero_point[entries],
                qmin,
                qmax,
                p=p,
                weights=None if weights is None else factor,
                axis=channel_axis,
            )
        return errors
    with np.errstate(all="ignore"):
        quantized = fake_quantize(x, scale, zero_point, qmin, qmax, axis=axis)
        distance = np.abs(quantized.astype(np.float64) - x.astype(np.float64))
        terms = _power(distance, p)
        if weights is not None:
            terms = weights.astype(np.float64) * terms
        return sum_channels(in_memory_order(terms, x, axis))


def in_memory_order(terms: Sums, x: FloatArray, axis: int | None) -> Sums:
    """`terms` as `[outer, channels, inner]`, elements in the order in which those of `x` lie in memory."""
    if axis is None or x.shape[axis % x.ndim] == 1:
        flat: Sums = terms.transpose(_memory_axes(x)).reshape(1, 1, -1)
        return flat
    axis %= x.ndim
    axes = _memory_axes(x)
    place = axes.index(axis)
    outer = math.prod(x.shape[a] for a in axes[:place])
    split: Sums = terms.transpose(axes).reshape(outer, x.shape[axis], math.prod(x.shape[a] for a in axes[place + 1 :]))
    return split


def _memory_axes(x: FloatArray) -> list[int]:
    return sorted(range(x.ndim), key=lambda a: -x.strides[a])


def _power(distance: Sums, p: float) -> Sums:
    if p == 1.0:
        return distance
    if p == 2.0:
        return distance * distance
    # math.pow is the C library's pow, which the kernel calls; NumPy's own may differ in the last place.
    return np.array([_pow(d, p) for d in distance.reshape(-1).tolist()], np.float64).reshape(distance.shape)


def _pow(base: float, exponent: float) -> float:
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


def sum_channels(terms: Sums) -> Sums:
    """Sums of `[outer, channels, inner]` over each channel, in the order of the kernels."""
    outer, channels, inner = terms.shape
    if terms.size == 0:
        return np.zeros(channels)
    sums = np.zeros(channels)
    for rows, elements in _slices(outer, channels, inner):
        part = terms[rows, :, elements]
        if part.size == 0:
            continue
        sums = sums + (_add_in_order(part[:, :, 0]) if inner == 1 else _add_lanes(part))
    return sums


def _slices(outer: int, channels: int, inner: int) -> Iterator[tuple[slice, slice]]:
    most = min(max(MOST_PARTIALS // channels, 1), MOST_SLICES)
    outer_slices = min(outer, most)
    rows = -(-outer // outer_slices)
    inner_slices = max(1, min(inner // LEAST_RUN, most // outer_slices))
    run = -(-inner // inner_slices)
    run = -(-run // LANES) * LANES
    for k in range(outer_slices):
        for j in range(inner_slices):
            yield slice(k * rows, (k + 1) * rows), slice(j * run, (j + 1) * run)


def _add_in_order(terms: Sums) -> Sums:
    """Sum along axis 0, one row after the other."""
    return np.asarray(np.cumsum(terms, axis=0)[-1])


def _add_lanes(terms: Sums) -> Sums:
    """Sum `[rows, channels, n]` over rows and n: element i of a row to lane i % 16, then lanes by halving."""
    rows, channels, n = terms.shape
    padded = np.pad(terms, [(0, 0), (0, 0), (0, -n % LANES)]).reshape(rows, channels, -1, LANES)
    lanes = _add_in_order(padded.transpose(0, 2, 1, 3).reshape(-1, channels, LANES))
    width = LANES // 2
    while width:
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
        width //= 2
    return lanes[:, 0]
