"""Quantization error of a tensor, without materializing the quantized tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array
from detent.kernels.groups import group_views, require_group_entries, split_groups

__all__ = ["tensor_error"]

Array = npt.NDArray[Any]


def tensor_error(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    qmin: int,
    qmax: int,
    *,
    p: float = 2.0,
    weights: ArrayLike | None = None,
    axis: int | None = None,
    group_size: int | None = None,
) -> npt.NDArray[np.float64]:
    """Sum of `weights * |Q(x) - x|^p` for each entry of the grid, float64 `[n]`.

    The order of summation depends on the shape and memory order of `x` only: the same bits for any number of threads
    and any instruction set.

    Args:
        x: float32, dense in any order of axes.
        scale: steps, float32 `[n]`, as for `detent.kernels.quantize.fake_quantize`.
        zero_point: int32 `[n]`.
        qmin: lowest code.
        qmax: highest code.
        p: power of the error, positive; 1 and 2 are fast.
        weights: float32 with the shape and memory order of `x`; None counts every element once.
        axis: channel axis; None for one grid for all.
        group_size: elements of the input axis that share a grid; `x` must then be in C order.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    x, scale, zero_point = as_array(x), as_array(scale, "scale"), as_array(zero_point, "zero_point")
    factors = None if weights is None else as_array(weights, "weights")
    if group_size is None:
        return _core.tensor_error(x, scale, zero_point, qmin, qmax, p, factors, axis)
    channel_axis, groups = split_groups(x.shape, axis, group_size)
    require_group_entries((scale, zero_point), x.shape[channel_axis], groups)
    views = group_views(x, channel_axis, groups, "x")
    factor_views: list[Array | None] = [None] * len(views)
    if factors is not None:
        if factors.shape != x.shape:
            raise ValueError(f"weights must have the shape of x, {list(x.shape)}, got {list(factors.shape)}")
        factor_views = [*(view for view, _ in group_views(factors, channel_axis, groups, "weights"))]
    errors = np.zeros(len(scale), np.float64)
    for (view, entries), factor in zip(views, factor_views, strict=True):
        steps, zeros = np.ascontiguousarray(scale[entries]), np.ascontiguousarray(zero_point[entries])
        errors[entries] = _core.tensor_error(view, steps, zeros, qmin, qmax, p, factor, channel_axis)
    return errors
