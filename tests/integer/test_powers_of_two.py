"""Akida's arithmetic: numbers of few bits, aligned sums, and its rule against its formula in whole numbers."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from detent.integer.powers_of_two import aligned_total, alignment, to_bits
from detent.kernels.requantize import Requantization, requantize


@pytest.mark.parametrize("bits", [1, 7, 8])
def test_numbers_have_so_many_bits_and_none_is_nearer(bits: int) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=2000) * 2.0 ** rng.integers(-20, 20, 2000)
    mantissa, exponent = np.frexp(numbers)
    found = to_bits(numbers, bits)
    whole = np.ldexp(found, bits - exponent)
    assert np.array_equal(whole, np.rint(whole))
    assert np.all(np.abs(whole) <= 2**bits)
    assert np.all(np.abs(whole - np.ldexp(mantissa, bits)) <= 0.5)


def test_whole_numbers_stay_whole_and_short_ones_as_they_are() -> None:
    numbers = np.arange(-1000, 1001).astype(np.float64)
    found = to_bits(numbers, 7)
    assert np.array_equal(found, np.rint(found))
    short = np.abs(numbers) <= 128
    assert np.array_equal(found[short], numbers[short])
    assert found[numbers == 257] == 256
    assert found[numbers == 1] == 1


def test_accumulators_become_codes_by_the_formula() -> None:
    rng = np.random.default_rng(1)
    multiplier, shift = rng.integers(128, 256, 40), rng.integers(-2, 24, 40)
    acc = rng.integers(-(2**23), 2**23, (200, 40)).astype(np.int32)
    acc[:100] //= 4096
    factors = np.ldexp(multiplier.astype(np.float64), -shift)
    how = Requantization.of("int16x8", factors, zero_point=0, lowest=-128, highest=127)
    found = requantize(acc, how, np.int8, axis=1)
    for row, codes in zip(acc[:40], found[:40], strict=True):
        for number, by, down, code in zip(row, multiplier, shift, codes, strict=True):
            exact = floor(Fraction(int(number)) * int(by) / Fraction(2) ** int(down) + Fraction(1, 2))
            assert code == min(max(exact, -128), 127)


@pytest.mark.parametrize(
    "scales", [(0.5, 0.125, 0.25), (0.5, 0.5, 0.5), (0.25, 4.0, 0.5), (2.0, 2.0, 0.5), (0.1, 0.1, 8.0)]
)
def test_sums_are_those_of_real_numbers_with_ties_upward(scales: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(2)
    scales = tuple(2.0 ** np.frexp(scale)[1] for scale in scales)  # type: ignore[assignment]
    a, b = rng.integers(-128, 128, (2, 500))
    exact = [
        floor((int(x) * Fraction(scales[0]) + int(y) * Fraction(scales[1])) / Fraction(scales[2]) + Fraction(1, 2))
        for x, y in zip(a, b, strict=True)
    ]
    assert aligned_total(a, b, scales).tolist() == exact
    assert min(alignment(scales)) == 0
