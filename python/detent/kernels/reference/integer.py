"""Twins of `detent.kernels.requantize`, `integer_products`, `_sum` and `_moves`, in the words of the runtimes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.kernels.requantize import Requantization

__all__ = [
    "integer_conv",
    "integer_gather",
    "integer_linear",
    "integer_look_up",
    "integer_sum",
    "integer_table_sum",
    "integer_value_sum",
    "requantize",
]

Integers = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


def requantize(acc: Array, how: Requantization, dtype: npt.DTypeLike, *, axis: int | None = None) -> Array:
    """Twin of `kernels.requantize.requantize`."""

    def along(entries: Array) -> Array:
        wide = [1] * acc.ndim
        if axis is not None and entries.size > 1:
            wide[axis] = entries.size
        return entries.reshape(wide)

    if how.factor is not None:
        with np.errstate(over="ignore"):
            rounded = np.rint(acc.astype(np.float32) * along(how.factor)).astype(np.float64)
    else:
        assert how.multiplier is not None
        assert how.shift is not None
        q, e = along(how.multiplier.astype(np.int64)), along(how.shift.astype(np.int64))
        rounded = _ROUNDED[how.rule](acc.astype(np.int64), q, e).astype(np.float64)
    # 64-bit codes of float64 are exact here: products end below 2^53.
    codes = np.clip(rounded + how.zero_point, how.lowest, how.highest).astype(dtype)
    out = np.empty_like(acc, dtype)
    out[...] = codes
    return out


def _doubling_high_product(acc: Integers, q: Integers) -> Integers:
    """gemmlowp's SaturatingRoundingDoublingHighMul: the nudge has the product's sign, division goes towards zero."""
    product = acc * q
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    found: Integers = np.sign(nudged) * (np.abs(nudged) // (1 << 31))
    return found


def _shifted_left(acc: Integers, e: Integers) -> Integers:
    return (acc << np.maximum(e, 0)).astype(np.int32).astype(np.int64)


def _divided_by_power(x: Integers, exponent: Integers) -> Integers:
    """gemmlowp's RoundingDivideByPOT: half away from zero."""
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    found: Integers = (x >> exponent) + ((x & mask) > threshold)
    return found


def _double_rounding(acc: Integers, q: Integers, e: Integers) -> Integers:
    return _divided_by_power(_doubling_high_product(_shifted_left(acc, e), q), np.maximum(-e, 0))


def _ruy(acc: Integers, q: Integers, e: Integers) -> Integers:
    right = np.maximum(-e, 0)
    high = _doubling_high_product(_shifted_left(acc, e), q)
    return np.where(right > 0, (high + (np.int64(1) << np.maximum(right - 1, 0))) >> right, high)


def _single_rounding(acc: Integers, q: Integers, e: Integers) -> Integers:
    found: Integers = np.sign(acc) * ((np.abs(acc) * q + (np.int64(1) << (30 - e))) >> (31 - e))
    return found


def _int16x8(acc: Integers, q: Integers, e: Integers) -> Integers:
    reduced = np.where(q < 0x7FFF0000, (q + (1 << 15)) >> 16, 0x7FFF)
    found: Integers = (acc * reduced + (np.int64(1) << (14 - e))) >> (15 - e)
    return found


_ROUNDED: Final[dict[str, Callable[[Integers, Integers, Integers], Integers]]] = {
    "double_rounding": _double_rounding,
    "ruy": _ruy,
    "single_rounding": _single_rounding,
    "int16x8": _int16x8,
}


def integer_conv(
    x: Array,
    kernel: Array,
    how: Requantization,
    dtype: npt.DTypeLike,
    *,
    zero_point: int = 0,
    bias: Array | None = None,
    stride: tuple[int, int] = (1, 1),
    before: tuple[int, int] = (0, 0),
    after: tuple[int, int] | None = None,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> tuple[Array, tuple[int, int]]:
    """Twin of `kernels.integer_products.integer_conv`."""
    ends = [(0, 0), (0, 0), *zip(before, before if after is None else after, strict=True)]
    padded = np.pad(x.astype(np.int64) - zero_point, ends)
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel.shape[2:], dilation, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    samples, channels, height, width = windows.shape[:4]
    parted = windows.reshape(samples, groups, channels // groups, height, width, *kernel.shape[2:])
    weights = kernel.astype(np.int64).reshape(groups, -1, *kernel.shape[1:])
    acc = np.einsum("sgchwij,gocij->sgohw", parted, weights).reshape(samples, -1, height, width)
    return _ended(acc, x.dtype, how, dtype, bias)


def integer_linear(
    x: Array,
    kernel: Array,
    how: Requantization,
    dtype: npt.DTypeLike,
    *,
    zero_point: int = 0,
    bias: Array | None = None,
) -> tuple[Array, tuple[int, int]]:
    """Twin of `kernels.integer_products.integer_linear`."""
    acc = (x.astype(np.int64) - zero_point) @ kernel.astype(np.int64).T
    return _ended(acc, x.dtype, how, dtype, bias)


def integer_sum(
    a: Array,
    b: Array,
    dtype: npt.DTypeLike,
    *,
    factor_a: float,
    factor_b: float,
    rest: float,
    lowest: int,
    highest: int,
) -> Array:
    """Twin of `kernels.integer_sum.integer_sum`: long double stands for the exact number that is rounded once."""
    exact = np.longdouble
    inner = (b.astype(exact) * exact(np.float32(factor_b)) + exact(np.float32(rest))).astype(np.float32)
    total = (a.astype(exact) * exact(np.float32(factor_a)) + inner.astype(exact)).astype(np.float32)
    found: Array = np.clip(np.rint(total), lowest, highest).astype(dtype)
    return found


def integer_value_sum(
    a: Array,
    b: Array,
    dtype: npt.DTypeLike,
    *,
    scales: tuple[float, float, float],
    zero_points: tuple[int, int, int],
    lowest: int,
    highest: int,
) -> Array:
    """Twin of `kernels.integer_sum.integer_value_sum`."""
    terms = [
        (codes.astype(np.int32) - np.int32(zero)).astype(np.float32) * np.float32(scale)
        for codes, scale, zero in zip((a, b), scales, zero_points, strict=False)
    ]
    steps = np.rint((terms[0] + terms[1]) / np.float32(scales[2]))
    zero = zero_points[2]
    found: Array = (np.clip(steps, lowest - zero, highest - zero) + zero).astype(dtype)
    return found


def integer_table_sum(a: Array, b: Array, table_a: Array, table_b: Array) -> Array:
    """Twin of `kernels.integer_sum.integer_table_sum`."""
    found: Array = integer_look_up(a, table_a).view(np.uint32) + integer_look_up(b, table_b).view(np.uint32)
    return found.view(np.int32)


def integer_gather(x: Array, places: Array, *, fill: int) -> Array:
    """Twin of `kernels.integer_moves.integer_gather`."""
    padded = np.concatenate([x, np.full((len(x), 1), fill, x.dtype)], axis=1)
    return padded[:, np.where(places < 0, x.shape[1], places)]


def integer_look_up(x: Array, table: Array) -> Array:
    """Twin of `kernels.integer_moves.integer_look_up`."""
    found: Array = table[x.astype(np.int64) - np.iinfo(x.dtype).min]
    return found


def _ended(
    acc: Integers, codes: np.dtype[Any], how: Requantization, dtype: npt.DTypeLike, bias: Array | None
) -> tuple[Array, tuple[int, int]]:
    if bias is not None:
        acc = acc + bias.reshape(-1, *[1] * (acc.ndim - 2))
    if codes.itemsize == 1:
        acc = acc.astype(np.int32).astype(np.int64)  # wraps around
    held = acc.astype(np.int32) if codes.itemsize == 1 else acc
    return requantize(held, how, dtype, axis=1), (int(acc.min()), int(acc.max()))
