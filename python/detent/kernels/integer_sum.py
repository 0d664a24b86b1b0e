"""Sums of two tensors of codes: in the fused steps of onnxruntime's `QLinearAdd`, or of the values they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array

__all__ = ["integer_sum", "integer_table_sum", "integer_value_sum"]


def integer_sum(
    a: ArrayLike,
    b: ArrayLike,
    dtype: npt.DTypeLike,
    *,
    factor_a: float,
    factor_b: float,
    rest: float,
    lowest: int,
    highest: int,
) -> npt.NDArray[Any]:
    """Codes `a * factor_a + (b * factor_b + rest)`, each multiply-add rounded once to float32, the last one to even.

    Args:
        a: codes of 8 or 16 bits, in C order.
        b: likewise, of the same shape.
        dtype: of the result: uint8, int8, uint16 or int16.
        factor_a: (step of `a`) / (step of the result), a float32 number in 2^-20..2^20.
        factor_b: likewise.
        rest: a float32 number: the zero point of the result less what those of `a` and `b` come to.
        lowest: code.
        highest: code.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    first, second = as_array(a, "a"), as_array(b, "b")
    out = np.empty(first.shape, dtype)
    _core.integer_sum(first, second, factor_a, factor_b, rest, lowest, highest, out)
    return out


def integer_value_sum(
    a: ArrayLike,
    b: ArrayLike,
    dtype: npt.DTypeLike,
    *,
    scales: tuple[float, float, float],
    zero_points: tuple[int, int, int],
    lowest: int,
    highest: int,
) -> npt.NDArray[Any]:
    """Codes of `(a - zero point) * scale + (b - zero point) * scale`, all of it in float32, rounded half to even.

    Args:
        a: codes of 8 or 16 bits, in C order.
        b: likewise, of the same shape.
        dtype: of the result: uint8, int8, uint16 or int16.
        scales: of `a`, `b` and the result, float32 numbers; a negative one subtracts.
        zero_points: likewise.
        lowest: code.
        highest: code.

    Raises:
        ValueError: a wrong dtype, shape, layout or number; the message says which.
        TypeError: not an array.
    """
    first, second = as_array(a, "a"), as_array(b, "b")
    out = np.empty(first.shape, dtype)
    _core.integer_value_sum(first, second, scales, zero_points, lowest, highest, out)
    return out


def integer_table_sum(a: ArrayLike, b: ArrayLike, table_a: ArrayLike, table_b: ArrayLike) -> npt.NDArray[np.int32]:
    """Sums of what two tables have for codes, 32 bits, which wrap around.

    Args:
        a: codes of 8 or 16 bits, in C order.
        b: likewise, of the same shape.
        table_a: int32, one entry for each number that the type of `a` has, the least one first.
        table_b: likewise for `b`.

    Raises:
        ValueError: a wrong dtype, shape or layout; the message says which.
        TypeError: not an array.
    """
    first, second = as_array(a, "a"), as_array(b, "b")
    out = np.empty(first.shape, np.int32)
    _core.integer_table_sum(first, second, as_array(table_a, "table_a"), as_array(table_b, "table_b"), out)
    return out
