"""Convolutions and linear layers on integer codes, exact up to the rounding of what they end in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array
from detent.kernels.requantize import Requantization

__all__ = ["integer_conv", "integer_linear"]

Pair = tuple[int, int]
Extremes = tuple[int, int]


def integer_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    how: Requantization,
    dtype: npt.DTypeLike,
    *,
    zero_point: int = 0,
    bias: ArrayLike | None = None,
    stride: Pair = (1, 1),
    before: Pair = (0, 0),
    after: Pair | None = None,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> tuple[npt.NDArray[Any], Extremes]:
    """A convolution of codes.

    Args:
        x: codes `[samples, channels, height, width]` of 8 or 16 bits, in C order.
        kernel: int16 codes without their zero point, `[outputs, channels / groups, height, width]`.
        how: from accumulators to codes; one factor, or one for each output.
        dtype: of the result.
        zero_point: the code of `x` that stands for zero; what is padded has it too.
        bias: int64 `[outputs]`, added to accumulators.
        stride: of rows and columns.
        before: rows above and columns on the left of `x` that are padded.
        after: likewise below and on the right; None takes `before`.
        dilation: of rows and columns.
        groups: of channels.

    Returns:
        Codes `[samples, outputs, height, width]`; and the least and the greatest accumulator, bias included. They have
        32 bits for 8-bit codes, and wrap around where these do not suffice.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    codes, weights = as_array(x), as_array(kernel, "kernel")
    if codes.ndim != 4 or weights.ndim != 4:
        raise ValueError(f"x and kernel must have four axes, got shapes {codes.shape} and {weights.shape}")
    sizes = []
    for axis in (0, 1):
        padded = codes.shape[2 + axis] + before[axis] + (before if after is None else after)[axis]
        reach = dilation[axis] * (weights.shape[2 + axis] - 1) + 1
        sizes.append(max(0, (padded - reach) // stride[axis] + 1) if stride[axis] > 0 else 0)
    out = np.empty((codes.shape[0], weights.shape[0], *sizes), dtype)
    added = None if bias is None else as_array(bias, "bias")
    factors = how.for_core()
    extremes = _core.integer_conv(codes, zero_point, weights, added, stride, before, dilation, groups, factors, out)
    return out, (extremes[0], extremes[1])


def integer_linear(
    x: ArrayLike,
    kernel: ArrayLike,
    how: Requantization,
    dtype: npt.DTypeLike,
    *,
    zero_point: int = 0,
    bias: ArrayLike | None = None,
) -> tuple[npt.NDArray[Any], Extremes]:
    """A linear layer on codes, `[rows, inputs]` to `[rows, outputs]`; otherwise as `integer_conv`.

    Args:
        x: codes of 8 or 16 bits, in C order.
        kernel: int16 codes without their zero point, `[outputs, inputs]`.
        how: from accumulators to codes; one factor, or one for each output.
        dtype: of the result.
        zero_point: the code of `x` that stands for zero.
        bias: int64 `[outputs]`.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    codes, weights = as_array(x), as_array(kernel, "kernel")
    if codes.ndim != 2 or weights.ndim != 2:
        raise ValueError(f"x and kernel must have two axes, got shapes {codes.shape} and {weights.shape}")
    out = np.empty((codes.shape[0], weights.shape[0]), dtype)
    added = None if bias is None else as_array(bias, "bias")
    extremes = _core.integer_linear(codes, zero_point, weights, added, how.for_core(), out)
    return out, (extremes[0], extremes[1])
