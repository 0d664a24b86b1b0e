"""Functions of single values as TensorFlow Lite's kernels compute them on codes, in whole numbers.

Sigmoid and tanh are gemmlowp's (`fixedpoint/fixedpoint.h`): an exponential of negative numbers from a polynomial within
a quarter and a product for each bit above it, then Newton's steps for `1 / (1 + x)`. Names like `_q31` give the bits
behind the point. Sources: TensorFlow Lite, `kernels/internal/reference/integer_ops/logistic.h` and `tanh.h`,
`hard_swish.h`, `leaky_relu.h`, and `micro/kernels` for what prepares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.integer.code_grid import CodeGrid
from detent.kernels.requantize import Requantization, fixed_point, requantize

__all__ = ["FIXED_FUNCTIONS", "PRESCRIBED", "SIGMOID_GRID", "requantized"]

Integers = npt.NDArray[np.int64]
SIGMOID_GRID: Final = CodeGrid.of(1 / 256, -128, -128, 127)
"""Of every sigmoid of 8-bit codes."""

PRESCRIBED: Final = {"sigmoid": SIGMOID_GRID, "tanh": CodeGrid.of(1 / 128, 0, -128, 127)}
"""Grids that the kernels give their results on, whatever the file says."""

_TOP: Final = 2**31 - 1
_BITS_OF_INPUT: Final = 4
"""Before the point, of the input of sigmoid and tanh: they are flat beyond 16."""
_EXPONENTIALS: Final = {
    -2: 1672461947,
    -1: 1302514674,
    0: 790015084,
    1: 290630308,
    2: 39332535,
    3: 720401,
    4: 242,
}
"""exp(-2^key), 31 bits behind the point."""


def _high(a: Any, b: Any) -> Integers:
    """Upper half of the doubled product, ties upward for positive products and downward for negative ones."""
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    found: Integers = np.sign(nudged) * (np.abs(nudged) >> 31)
    bounded: Integers = np.minimum(found, _TOP)
    return bounded


def _shifted_right(x: Integers, count: int) -> Integers:
    """Divided by a power of two, half away from zero."""
    mask = (1 << count) - 1
    found: Integers = (x >> count) + ((x & mask) > (mask >> 1) + (x < 0))
    return found


def _shifted_left(x: Integers, count: int) -> Integers:
    found: Integers = np.clip(x << count, -_TOP - 1, _TOP)
    return found


def _exp_within_a_quarter(a: Integers) -> Integers:
    """exp of -1/4 to 0, both with 31 bits behind the point: a polynomial around -1/8."""
    middle, third = 1895147668, 715827883
    x = a + (1 << 28)
    square = _high(x, x)
    fourth = _high(square, square)
    rest = _high(_shifted_right(fourth, 2) + _high(square, x), third) + square
    return middle + _high(middle, x + _shifted_right(rest, 1))


def _exp_of_negative(a: Integers, whole: int) -> Integers:
    """exp of numbers <= 0 with `whole` bits before the point; 31 bits behind it in the result."""
    behind = 31 - whole
    quarter = 1 << (behind - 2)
    within = (a & (quarter - 1)) - quarter
    found = _exp_within_a_quarter(_shifted_left(within, whole))
    left = within - a
    for exponent, multiplier in _EXPONENTIALS.items():
        if whole > exponent:
            found = np.where(left & (1 << (behind + exponent)) != 0, _high(found, multiplier), found)
    return np.where(a == 0, _TOP, found)


def _halved_reciprocal(x: Integers) -> Integers:
    """2 / (1 + x) of 0..1, 29 bits behind the point: three of Newton's steps."""
    total = x + _TOP
    half = np.sign(total) * ((np.abs(total) + 1) >> 1)
    found = 1515870810 + _high(half, -1010580540)
    for _ in range(3):
        found = found + _shifted_left(_high(found, (1 << 29) - _high(half, found)), 2)
    return found


def _sigmoid_q31(x: Integers, whole: int) -> Integers:
    positive = _shifted_left(_halved_reciprocal(_exp_of_negative(-np.abs(x), whole)), 1)
    found = np.where(x > 0, positive, _TOP - positive)
    return np.where(x == 0, 1 << 30, found)


def _tanh_q31(x: Integers, whole: int) -> Integers:
    # The bits stay, the point moves: exp of twice the number.
    lost = _shifted_left(_halved_reciprocal(_exp_of_negative(-np.abs(x), whole + 1)) - (1 << 29), 2)
    return np.where(x == 0, 0, np.where(x < 0, -lost, lost))


def _saturating(function: Callable[[Integers, int], Integers], bits: int, zero_point: int) -> Callable[..., Integers]:
    """A function with results of `bits` behind the point, which is flat at both ends."""

    def codes(x: Integers, scale: float, result: float, **_: Any) -> Integers:
        mantissa, shift = np.frexp(float(np.float32(scale)) * (1 << (31 - _BITS_OF_INPUT)))
        multiplier = int(np.floor(mantissa * 2.0**31 + 0.5))
        radius = int(np.floor(((1 << _BITS_OF_INPUT) - 1) * 2.0 ** (31 - _BITS_OF_INPUT) / 2.0 ** int(shift)))
        how = Requantization(
            rule="double_rounding",
            multiplier=np.array([multiplier], np.int32),
            shift=np.array([shift], np.int32),
            **_ENDS,
        )
        inside = np.clip(x, -radius, radius).astype(np.int32)
        found = _shifted_right(function(requantize(inside, how, np.int32).astype(np.int64), _BITS_OF_INPUT), 31 - bits)
        ends = -128 - zero_point, 127 - zero_point
        return np.where(x <= -radius, ends[0], np.where(x >= radius, ends[1], np.clip(found, *ends)))

    return codes


_ENDS: Final[dict[str, Any]] = {"zero_point": 0, "lowest": -(2**31), "highest": _TOP}


def requantized(x: Integers, scale: float, result: float, *, factor: float = 1.0, **_: Any) -> Integers:
    """Codes without zero points in another step."""
    quotient = float(np.float32(scale)) * factor / float(np.float32(result))
    how = Requantization.of("double_rounding", np.array([quotient]), **_ENDS)
    found: Integers = requantize(np.ascontiguousarray(x.astype(np.int32)), how, np.int32).astype(np.int64)
    return found


def _leaky(x: Integers, scale: float, result: float, *, negative_slope: float = 0.01, **_: Any) -> Integers:
    below = requantized(x, scale, result, factor=float(np.float32(negative_slope)))
    return np.where(x >= 0, requantized(x, scale, result), below)


def _relu(x: Integers, scale: float, result: float, **_: Any) -> Integers:
    return np.maximum(requantized(x, scale, result), 0)


def _high16(a: Integers, b: int, *, rounded: bool = True) -> Integers:
    product = a * b + ((1 << 14) if rounded else 0)
    # Towards zero where it is not rounded.
    found = product >> 15 if rounded else np.sign(product) * (np.abs(product) >> 15)
    bounded: Integers = np.clip(found, -32768, 32767)
    return bounded


def _narrow(factor: float) -> tuple[int, int]:
    """A multiplier of 15 bits and its shift."""
    multipliers, shifts = fixed_point(np.array([factor]))
    return min(int(multipliers[0]) + (1 << 15) >> 16, 32767), int(shifts[0])


def _hardswish(x: Integers, scale: float, result: float, **_: Any) -> Integers:
    fine = np.float32(1 / 128) * np.float32(scale)
    multiplier, exponent = _narrow(float(fine / np.float32(result)))
    slope, slope_exponent = _narrow(float(fine / np.float32(3 / 32768)))
    wide = x << 7
    scaled = _high16(wide, multiplier)
    gate = np.clip(wide << max(slope_exponent - 1, 0), -32768, 32767)
    gate = _high16(gate, slope)
    if slope_exponent > 0:
        gate = np.clip(gate << 1, -32768, 32767)
    gate = _shifted_right(gate, max(-slope_exponent, 0))
    gate = (gate + (1 << 15)) >> 1
    product = gate * scaled
    high = np.clip(np.sign(product) * (np.abs(product) >> 15), -32768, 32767)
    return _shifted_right(high, max(-exponent, 0))


FIXED_FUNCTIONS: Final[dict[str, Callable[..., Integers]]] = {
    "hardswish": _hardswish,
    "leaky_relu": _leaky,
    "relu": _relu,
    "requantize": requantized,
    "sigmoid": _saturating(_sigmoid_q31, 8, -128),
    "tanh": _saturating(_tanh_q31, 7, 0),
}
"""By operator: from codes without zero points, their step and that of the result, to codes without zero points."""
