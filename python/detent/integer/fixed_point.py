"""Sums, products and means of codes as TensorFlow Lite's and XNNPACK's kernels compute them: with whole numbers.

In TensorFlow Lite each product with a real factor is gemmlowp's: a doubled high product, then a shift, both rounded
(`detent.kernels.requantize`, rule `"double_rounding"`). Factors are float64 quotients of float32 scales, as the kernels
prepare them. Source: TensorFlow Lite, `kernels/internal/reference/add.h`, `mul.h` and `reduce.h`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.kernels.requantize import Requantization, fixed_point, requantize

__all__ = ["average_of_codes", "mean", "of_terms", "product", "shifted_total", "single", "terms"]

Codes = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Table = npt.NDArray[np.int32]
_WHOLE: Final[dict[str, Any]] = {"zero_point": 0, "lowest": -(2**31), "highest": 2**31 - 1}


def single(scale: float) -> float:
    """A float32 number as a float64 one."""
    return float(np.float32(scale))


def _multiplied(acc: npt.NDArray[np.int32], factor: float) -> npt.NDArray[np.int32]:
    """Products with a factor, rounded, 32 bits."""
    how = Requantization.of("double_rounding", np.array([factor]), **_WHOLE)
    found: npt.NDArray[np.int32] = requantize(np.ascontiguousarray(acc), how, np.int32)
    return found


def terms(codes: Integers, others: Integers, scales: tuple[float, float, float], bits: int) -> tuple[Table, Table]:
    """What TensorFlow Lite's sums add up: for the codes of both operands, without zero points, 32 bits.

    Args:
        codes: of the first operand.
        others: of the second.
        scales: of both and of the result.
        bits: of the codes, 8 or 16, which leave room for 20 or 15 bits of fraction.
    """
    fraction = _fraction(bits)
    first, second = single(scales[0]), single(scales[1])
    whole = 2 * max(first, second)
    return (
        _multiplied((codes << fraction).astype(np.int32), first / whole),
        _multiplied((others << fraction).astype(np.int32), second / whole),
    )


def of_terms(
    scales: tuple[float, float, float], bits: int, *, zero_point: int, lowest: int, highest: int
) -> Requantization:
    """What makes codes of the sums of such terms; arguments as `terms` has them, and the codes of the result."""
    whole = 2 * max(single(scales[0]), single(scales[1]))
    factor = np.array([whole / ((1 << _fraction(bits)) * single(scales[2]))])
    return Requantization.of("double_rounding", factor, zero_point=zero_point, lowest=lowest, highest=highest)


def _fraction(bits: int) -> int:
    return 20 if bits == 8 else 15


def shifted_total(a: Integers, b: Integers, scales: tuple[float, float, float]) -> Integers:
    """Sums without the zero point as XNNPACK has them: multipliers of 21 bits, one shift, ties upward.

    Args:
        a: codes without their zero point.
        b: likewise.
        scales: of `a`, of `b` and of the result.

    Source: XNNPACK, `src/microparams-init.c`, `qs8_add_minmax`.
    """
    ratios = [np.float32(scale) / np.float32(scales[2]) for scale in scales[:2]]
    shift = 21 - int(np.frexp(max(ratios))[1])
    first, second = (int(np.rint(np.ldexp(ratio, shift))) for ratio in ratios)
    found: Integers = (a * first + b * second + (1 << (shift - 1))) >> shift
    return found


def product(a: Integers, b: Integers, scales: tuple[float, float, float]) -> Integers:
    """Products without the zero point; arguments as `shifted_total` has them."""
    first, second, result = (single(scale) for scale in scales)
    return _multiplied((a * b).astype(np.int32), first * second / result).astype(np.int64)


def mean(sums: Integers, count: int, scales: tuple[float, float]) -> Integers:
    """Means without the zero point: the count divides the multiplier, with as many bits more as it has room for.

    Args:
        sums: of codes without their zero point.
        count: how many each sum has.
        scales: of the codes and of the result.
    """
    source, result = (single(scale) for scale in scales)
    multipliers, shifts = fixed_point(np.array([source / result]))
    multiplier, shift = int(multipliers[0]), int(shifts[0])
    room = min(count.bit_length() - 1, 32, 31 + shift)
    how = Requantization(
        rule="double_rounding",
        multiplier=np.array([(multiplier << room) // count], np.int32),
        shift=np.array([shift - room], np.int32),
        **_WHOLE,
    )
    found: Integers = requantize(np.ascontiguousarray(sums.astype(np.int32)), how, np.int32).astype(np.int64)
    return found


def average_of_codes(sums: Integers, counts: Integers) -> Integers:
    """Whole quotients of sums of codes, zero points included, half away from zero."""
    rounded: Integers = np.sign(sums) * ((np.abs(sums) + counts // 2) // counts)
    return rounded
