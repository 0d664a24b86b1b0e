"""Twins of `detent.kernels.quantize`: the same signatures and the same bits, one NumPy expression per step.

They take NumPy arrays of any layout, return C order, and leave argument checking to the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "dequantize",
    "fake_quantize",
    "in_range_mask",
    "lut_dequantize",
    "lut_fake_quantize",
    "lut_quantize",
    "pack_int4",
    "quantize",
    "unpack_int4",
]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


def fake_quantize(
    x: FloatArray,
    scale: FloatArray,
    zero_point: npt.NDArray[np.int32],
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: FloatArray | None = None,
) -> FloatArray:
    """Twin of `kernels.quantize.fake_quantize`."""
    steps, zeros = spread(scale, x.shape, axis, group_size), spread(zero_point, x.shape, axis, group_size)
    codes = np.clip(rounded(x, steps) + zeros, qmin, qmax)
    return _store(_values(codes, steps, zeros), out)


def in_range_mask(
    x: FloatArray,
    scale: FloatArray,
    zero_point: npt.NDArray[np.int32],
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.bool_]:
    """Twin of `kernels.quantize.in_range_mask`."""
    steps, zeros = spread(scale, x.shape, axis, group_size), spread(zero_point, x.shape, axis, group_size)
    codes = rounded(x, steps) + zeros
    return _store((qmin <= codes) & (codes <= qmax), out)


def quantize(
    x: FloatArray,
    scale: FloatArray,
    zero_point: npt.NDArray[np.int32],
    qmin: int,
    qmax: int,
    *,
    dtype: str,
    axis: int | None = None,
    group_size: int | None = None,
    out: Array | None = None,
) -> Array:
    """Twin of `kernels.quantize.quantize`."""
    steps, zeros = spread(scale, x.shape, axis, group_size), spread(zero_point, x.shape, axis, group_size)
    codes = np.clip(rounded(x, steps) + zeros, qmin, qmax)
    codes = np.where(np.isnan(codes), zeros, codes)
    if dtype in ("int4", "uint4"):
        return pack_int4(codes.astype(np.int8 if dtype == "int4" else np.uint8), out=out)
    return _store(codes.astype(dtype), out)


def dequantize(
    codes: Array,
    scale: FloatArray,
    zero_point: npt.NDArray[np.int32],
    *,
    axis: int | None = None,
    group_size: int | None = None,
    dtype: str | None = None,
    shape: Sequence[int] | None = None,
    out: FloatArray | None = None,
) -> FloatArray:
    """Twin of `kernels.quantize.dequantize`."""
    if dtype in ("int4", "uint4"):
        if shape is None:
            raise ValueError("packed codes do not know their shape: give `shape`")
        codes = unpack_int4(codes, shape, dtype=dtype)
    steps, zeros = spread(scale, codes.shape, axis, group_size), spread(zero_point, codes.shape, axis, group_size)
    return _store(_values(codes.astype(np.float64), steps, zeros), out)


def pack_int4(codes: Array, *, out: ByteArray | None = None) -> ByteArray:
    """Twin of `kernels.quantize.pack_int4`."""
    nibbles = codes.reshape(-1).astype(np.int16) & 15
    even = np.pad(nibbles, (0, nibbles.size % 2)).reshape(-1, 2)
    return _store((even[:, 0] | (even[:, 1] << 4)).astype(np.uint8), out)


def unpack_int4(packed: ByteArray, shape: Sequence[int], *, dtype: str = "int4") -> Array:
    """Twin of `kernels.quantize.unpack_int4`."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))].reshape(shape)
    if dtype == "uint4":
        return nibbles
    return np.where(nibbles > 7, nibbles.astype(np.int8) - 16, nibbles).astype(np.int8)


def lut_fake_quantize(
    x: FloatArray,
    scale: FloatArray,
    table: FloatArray,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: FloatArray | None = None,
) -> FloatArray:
    """Twin of `kernels.quantize.lut_fake_quantize`."""
    values = lut_dequantize(
        lut_quantize(x, scale, table, axis=axis, group_size=group_size), scale, table, axis=axis, group_size=group_size
    )
    return _store(np.where(np.isnan(x), x, values), out)


def lut_quantize(
    x: FloatArray,
    scale: FloatArray,
    table: FloatArray,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: ByteArray | None = None,
) -> ByteArray:
    """Twin of `kernels.quantize.lut_quantize`."""
    if table.ndim == 2:
        return _store(_by_channel(lut_quantize, x, scale, table, axis), out)
    with np.errstate(all="ignore"):
        quotients = np.asarray(x / spread(scale, x.shape, axis, group_size), np.float32)
    bounds = ((table[:-1].astype(np.float64) + table[1:]) / 2).astype(np.float32)
    codes = np.searchsorted(bounds, np.where(np.isnan(quotients), np.float32(0), quotients), side="left")
    return _store(codes.astype(np.uint8), out)


def lut_dequantize(
    codes: ByteArray,
    scale: FloatArray,
    table: FloatArray,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: FloatArray | None = None,
) -> FloatArray:
    """Twin of `kernels.quantize.lut_dequantize`."""
    if table.ndim == 2:
        return _store(_by_channel(lut_dequantize, codes, scale, table, axis), out)
    with np.errstate(all="ignore"):
        values = table[codes] * spread(scale, codes.shape, axis, group_size)
    return _store(np.asarray(values + np.float32(0), np.float32), out)


def _by_channel(twin: Callable[..., Array], x: Array, scale: FloatArray, table: FloatArray, axis: int | None) -> Array:
    """Each channel with a codebook of its own."""
    assert axis is not None
    rows = np.moveaxis(x, axis, 0)
    found = [twin(row, scale[c : c + 1], table[c]) for c, row in enumerate(rows)]
    return np.moveaxis(np.stack(found), 0, axis)


def spread(vector: Array, shape: tuple[int, ...], axis: int | None, group_size: int | None) -> Array:
    """One entry per array, per channel, or per channel and group, shaped to broadcast against `shape`."""
    if axis is None:
        return vector.reshape(())
    axis %= len(shape)
    channels = [1] * len(shape)
    channels[axis] = shape[axis]
    if group_size is None:
        return vector.reshape(channels)
    per_group = vector.reshape(shape[axis], -1)
    per_input = np.repeat(per_group, group_size, axis=1)
    channels[1 - axis] = shape[1 - axis]
    return (per_input if axis == 0 else per_input.T).reshape(channels)


def rounded(x: FloatArray, steps: FloatArray) -> npt.NDArray[np.float64]:
    """`round_half_even(x / scale)`: the quotient is a float32, what follows is exact in float64."""
    with np.errstate(all="ignore"):
        return np.rint(np.asarray(x / steps, np.float32)).astype(np.float64)


def _values(codes: npt.NDArray[np.float64], steps: FloatArray, zeros: Array) -> FloatArray:
    # Adding zero turns -0 into 0: integers have no sign of zero.
    distance = (codes - zeros).astype(np.float32) + np.float32(0)
    with np.errstate(over="ignore"):
        return np.asarray(distance * steps, np.float32)


def _store(result: Array, out: Array | None) -> Array:
    result = np.asarray(result)
    if out is None:
        return result
    out[...] = result
    return out
