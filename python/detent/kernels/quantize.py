"""Values to grids and codes, and back: affine grids (scale and zero point) and codebooks.

Every function takes NumPy arrays or CPU tensors (`ArrayLike`) and returns a NumPy array with the shape and memory order
of its input. Inputs are dense, in any order of axes (C order, channels last, ...); a view with gaps is refused. `scale`
and `zero_point` have one entry for the whole array, one per channel along `axis`, or, with `group_size`, one per
channel and group along the input axis (axis 1 if `axis` is 0, axis 0 if it is 1), channel first: entry
`c * groups + g`.

`code = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)` and `value = (code - zero_point) * scale`, in
float32. NaN stays NaN as a value and becomes the zero point as a code; infinities clamp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array
from detent.kernels.groups import Grid, apply_grids

__all__ = [
    "CODE_DTYPES",
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

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

CODE_DTYPES = ("int4", "uint4", "int8", "uint8", "int16", "uint16")
"""Storage types of codes; int4 and uint4 are packed two per byte."""

_PACKED = ("int4", "uint4")


def fake_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: ArrayLike | None = None,
) -> FloatArray:
    """Round float32 `x` to the grid, giving float32 values.

    Args:
        x: float32, any shape.
        scale: steps, float32 `[n]`, finite and positive.
        zero_point: codes of real zero, int32 `[n]`, each in `qmin..qmax`.
        qmin: lowest code, at least -2^15.
        qmax: highest code, at most 2^16 - 1.
        axis: channel axis; None for one grid for all.
        group_size: elements of the input axis that share a grid.
        out: where to write: `x` itself, or an array of the same shape and memory order that does not overlap `x`.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """

    def kernel(x: Array, grid: Grid, axis: int | None, out: Array | None) -> Array:
        return _core.fake_quantize(x, grid[0], grid[1], qmin, qmax, axis, out)

    return apply_grids(kernel, as_array(x), _affine(scale, zero_point), axis, group_size, np.float32, _output(out))


def in_range_mask(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: ArrayLike | None = None,
) -> npt.NDArray[np.bool_]:
    """True where `round(x / scale) + zero_point` needs no clamping: where a straight-through gradient passes.

    False for NaN. Arguments and errors as for `fake_quantize`; `out` is bool.
    """

    def kernel(x: Array, grid: Grid, axis: int | None, out: Array | None) -> Array:
        return _core.in_range_mask(x, grid[0], grid[1], qmin, qmax, axis, out)

    return apply_grids(kernel, as_array(x), _affine(scale, zero_point), axis, group_size, np.bool_, _output(out))


def quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    qmin: int,
    qmax: int,
    *,
    dtype: str,
    axis: int | None = None,
    group_size: int | None = None,
    out: ArrayLike | None = None,
) -> Array:
    """Codes of float32 `x`.

    Arguments and errors as for `fake_quantize`, and:

    Args:
        dtype: one of `CODE_DTYPES`. For int4 and uint4 the result is a uint8 vector of ceil(x.size / 2) bytes: codes in
            C order, two per byte, the first in the low nibble; `x` must be in C order.
        out: an array of that dtype with the shape and memory order of `x` (for packed codes, that vector).
    """
    if dtype not in CODE_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(CODE_DTYPES)}, got {dtype!r}")
    packed = dtype in _PACKED
    if packed and group_size is not None:
        wide = quantize(x, scale, zero_point, qmin, qmax, dtype=_unpacked(dtype), axis=axis, group_size=group_size)
        return pack_int4(wide, out=out)

    def kernel(x: Array, grid: Grid, axis: int | None, out: Array | None) -> Array:
        return _core.quantize(x, grid[0], grid[1], qmin, qmax, dtype, axis, out)

    stored = np.dtype(_unpacked(dtype) if packed else dtype)
    return apply_grids(kernel, as_array(x), _affine(scale, zero_point), axis, group_size, stored, _output(out))


def dequantize(
    codes: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    dtype: str | None = None,
    shape: Sequence[int] | None = None,
    out: ArrayLike | None = None,
) -> FloatArray:
    """float32 values of int8, uint8, int16, uint16 or int32 `codes`, or of packed int4 or uint4 ones.

    Args:
        codes: codes of any shape; packed ones as `quantize` gives them.
        scale: steps, float32 `[n]`.
        zero_point: int32 `[n]`.
        axis: channel axis; None for one grid for all.
        group_size: elements of the input axis that share a grid.
        dtype: `"int4"` or `"uint4"` for packed codes; otherwise None or the dtype that `codes` has.
        shape: shape of the result, for packed codes only.
        out: float32, with the shape and memory order of `codes`.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    codes, grid, target = as_array(codes, "codes"), _affine(scale, zero_point), _output(out)
    if dtype in _PACKED:
        if shape is None:
            raise ValueError("packed codes do not know their shape: give `shape`")
        if group_size is None:
            return _core.dequantize_packed(codes, grid[0], grid[1], dtype == "int4", list(shape), axis, target)
        codes = unpack_int4(codes, shape, dtype=str(dtype))
    elif shape is not None:
        raise ValueError("`shape` is for packed codes (dtype 'int4' or 'uint4')")
    elif dtype is not None and codes.dtype != dtype:
        raise ValueError(f"codes must have dtype {dtype}, got {codes.dtype}")

    def kernel(x: Array, grid: Grid, axis: int | None, out: Array | None) -> Array:
        return _core.dequantize(x, grid[0], grid[1], axis, out)

    return apply_grids(kernel, codes, grid, axis, group_size, np.float32, target)


def pack_int4(codes: ArrayLike, *, out: ArrayLike | None = None) -> ByteArray:
    """Put int8 codes in -8..7, or uint8 codes in 0..15, two per byte: C order, the first in the low nibble.

    Raises:
        ValueError: another dtype, a code out of range, or not in C order.
    """
    return _core.pack_int4(as_array(codes, "codes"), None if out is None else as_array(out, "out"))


def unpack_int4(packed: ArrayLike, shape: Sequence[int], *, dtype: str = "int4") -> Array:
    """Codes in bytes, int8 for `dtype` int4 and uint8 for uint4, of the given shape.

    Raises:
        ValueError: `packed` is not a uint8 vector of ceil(size / 2) bytes, or `dtype` is another.
    """
    if dtype not in _PACKED:
        raise ValueError(f"dtype must be int4 or uint4, got {dtype!r}")
    return _core.unpack_int4(as_array(packed, "packed"), list(shape), dtype == "int4")


def lut_fake_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    table: ArrayLike,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: ArrayLike | None = None,
) -> FloatArray:
    """Move float32 `x` to the nearest of `table * scale`; a tie goes to the lower entry.

    Args:
        x: float32, any shape.
        scale: multipliers of the table, float32 `[n]`, finite and positive.
        table: codebook, float32 `[k]`, 1 to 256 finite values in increasing order; or one for each channel, `[n, k]`.
        axis: channel axis; None for one scale for all.
        group_size: elements of the input axis that share a scale.
        out: where to write, as for `fake_quantize`.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    levels = _codebooks(table, group_size)

    def kernel(x: Array, grid: Grid, axis: int | None, out: Array | None) -> Array:
        return _core.lut_fake_quantize(x, grid[0], levels, axis, out)

    scales = (as_array(scale, "scale"),)
    return apply_grids(kernel, as_array(x, "x"), scales, axis, group_size, np.float32, _output(out))


def lut_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    table: ArrayLike,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: ArrayLike | None = None,
) -> ByteArray:
    """Indices into `table`, uint8, of the entries nearest to `x / scale`; NaN goes to the entry nearest to zero.

    Arguments and errors as for `lut_fake_quantize`; `out` is uint8.
    """
    levels = _codebooks(table, group_size)

    def kernel(x: Array, grid: Grid, axis: int | None, out: Array | None) -> Array:
        return _core.lut_quantize(x, grid[0], levels, axis, out)

    scales = (as_array(scale, "scale"),)
    return apply_grids(kernel, as_array(x, "x"), scales, axis, group_size, np.uint8, _output(out))


def lut_dequantize(
    codes: ArrayLike,
    scale: ArrayLike,
    table: ArrayLike,
    *,
    axis: int | None = None,
    group_size: int | None = None,
    out: ArrayLike | None = None,
) -> FloatArray:
    """`table[codes] * scale` for uint8 `codes`, float32.

    Raises:
        ValueError: a code outside the table, or as for `lut_fake_quantize`.
        TypeError: not an array.
    """
    levels = _codebooks(table, group_size)

    def kernel(x: Array, grid: Grid, axis: int | None, out: Array | None) -> Array:
        return _core.lut_dequantize(x, grid[0], levels, axis, out)

    scales = (as_array(scale, "scale"),)
    return apply_grids(kernel, as_array(codes, "codes"), scales, axis, group_size, np.float32, _output(out))


def _codebooks(table: ArrayLike, group_size: int | None) -> Array:
    levels = as_array(table, "table")
    if levels.ndim > 1 and group_size is not None:
        raise ValueError("scales per group share one codebook: `table` must be a vector")
    return levels


def _affine(scale: ArrayLike, zero_point: ArrayLike) -> Grid:
    return as_array(scale, "scale"), as_array(zero_point, "zero_point")


def _output(out: ArrayLike | None) -> Array | None:
    return None if out is None else as_array(out, "out")


def _unpacked(dtype: str) -> str:
    return "int8" if dtype == "int4" else "uint8"
