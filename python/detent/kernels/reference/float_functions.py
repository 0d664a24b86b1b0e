"""Twins of csrc/kernels/float_functions.h: float32 exponentials and logarithms, operation by operation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["exp2_of", "exp_of", "log2_of", "power_of"]

Floats = npt.NDArray[np.float32]

EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
SMALLEST = np.float32(2.0**-126)
ROOT_BITS = np.int32(0x3F3504F3)
f32 = np.float32


def exp_of(x: Floats) -> Floats:
    """e^x for x up to 88; that of -87 for what is below it."""
    kept = np.where(x < f32(-87), f32(-87), x)
    n = np.rint(kept * f32(1.44269504088896341))
    r = (kept - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
    return _exp_near_zero(r) * _power_of_two(n)


def exp2_of(y: Floats) -> Floats:
    """2^y for y up to 127; 0 below -126."""
    kept = np.where(y < f32(-126), f32(-126), y)
    n = np.rint(kept)
    power = _exp_near_zero((kept - n) * f32(0.693147180559945309)) * _power_of_two(n)
    return np.where(y < f32(-126), f32(0), power)


def log2_of(x: Floats) -> Floats:
    """The logarithm of x to base 2; that of 2^-126 for what is below it."""
    kept = np.where(x < SMALLEST, SMALLEST, x).astype(np.float32)
    bits = kept.view(np.int32) - ROOT_BITS
    f = ((bits & np.int32(0x007FFFFF)) + ROOT_BITS).view(np.float32) - f32(1)
    p = _polynomial(LOG, f)
    square = f * f
    series = p * (square * f) - f32(0.5) * square
    extra = f32(0.44269504088896340736)
    exponents = (bits >> np.int32(23)).astype(np.float32)
    return np.asarray(((series * extra + f * extra) + series + f) + exponents, np.float32)


def power_of(x: Floats, p: np.float32) -> Floats:
    """x^p for x in 0..1."""
    return exp2_of(p * log2_of(x))


def _exp_near_zero(r: Floats) -> Floats:
    return np.asarray(_polynomial(EXP, r) * (r * r) + r + f32(1), np.float32)


def _polynomial(coefficients: tuple[float, ...], x: Floats) -> Floats:
    p: Floats = np.full(x.shape, coefficients[0], np.float32)
    for coefficient in coefficients[1:]:
        p = p * x + f32(coefficient)
    return p


def _power_of_two(n: Floats) -> Floats:
    return np.asarray(np.ldexp(f32(1), np.nan_to_num(n).astype(np.int32)), np.float32)
