"""The rules of requantization: the kernel equals its twin bit for bit, and each rule equals exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detent.kernels.reference import integer as twin
from detent.kernels.requantize import RULES, Requantization, Rule, fixed_point, requantize
from tests import cases
from tests.fanout import assert_parity

ENDS = {np.uint8: (0, 255), np.int8: (-128, 127), np.uint16: (0, 65535), np.int16: (-32768, 32767)}
FIXED: tuple[Rule, ...] = ("double_rounding", "ruy", "single_rounding", "int16x8")


def accumulators(size: int, dtype: Any, most: int = 2**31 - 1) -> np.ndarray:
    random = np.random.default_rng(size)
    wide = random.integers(-most - 1, most, size, endpoint=True)
    some = np.where(random.random(size) < 0.5, wide >> random.integers(0, 31, size), wide)
    ends = np.array([0, 1, -1, most, -most - 1, 1 << 20, -(1 << 20)])
    some[: min(size, len(ends))] = ends[: min(size, len(ends))]
    return some.astype(dtype)


def factors(channels: int, largest: float = 2.0**-3) -> np.ndarray:
    return np.random.default_rng(channels).uniform(0, 1, channels) ** 4 * largest + 1e-9


@pytest.mark.parametrize("dtype", ENDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", cases.SIZES)
def test_sizes(size: str, rule: Rule, dtype: Any) -> None:
    lowest, highest = ENDS[dtype]
    how = Requantization.of(rule, factors(1), zero_point=3, lowest=lowest, highest=highest)
    acc = accumulators(cases.SIZES[size], np.int32)
    assert_parity(lambda: requantize(acc, how, dtype), twin.requantize(acc, how, dtype))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5, 70), 1), ((40, 7), 1), ((1, 2100), 1), ((6, 33), 0), ((2, 3, 0), 1)]
)
def test_channels(shape: tuple[int, ...], axis: int, rule: Rule) -> None:
    acc = accumulators(math.prod(shape), np.int32).reshape(shape)
    how = Requantization.of(rule, factors(shape[axis], 4.0), zero_point=-7, lowest=-100, highest=90)
    wanted = twin.requantize(acc, how, np.int8, axis=axis)
    assert_parity(lambda: requantize(acc, how, np.int8, axis=axis), wanted)


@pytest.mark.parametrize("rule", ["float", "int16x8"])
def test_wide_accumulators(rule: Rule) -> None:
    acc = accumulators(5000, np.int64, 2**46)
    how = Requantization.of(rule, factors(1, 1e-7), zero_point=0, lowest=-32768, highest=32767)
    assert_parity(lambda: requantize(acc, how, np.int16), twin.requantize(acc, how, np.int16))


def test_permuted_axes() -> None:
    acc = accumulators(3 * 5 * 8, np.int32).reshape(3, 8, 5).transpose(0, 2, 1)
    how = Requantization.of("double_rounding", factors(5), zero_point=0, lowest=-128, highest=127)
    wanted = twin.requantize(np.ascontiguousarray(acc), how, np.int8, axis=1)
    np.testing.assert_array_equal(requantize(acc, how, np.int8, axis=1), wanted)


def exact(acc: int, q: int, e: int, rule: Rule) -> int:
    """The rule in whole numbers of any size."""

    def half_up(x: Fraction) -> int:
        return math.floor(x + Fraction(1, 2))

    def half_away(x: Fraction) -> int:
        return half_up(x) if x >= 0 else -half_up(-x)

    if rule == "single_rounding":
        return half_away(Fraction(acc * q, 1) * Fraction(2) ** (e - 31))
    if rule == "int16x8":
        return half_up(Fraction(acc * min((q + 2**15) >> 16, 2**15 - 1), 1) * Fraction(2) ** (e - 15))
    high = half_up(Fraction(acc * 2 ** max(e, 0) * q, 2**31))
    over = Fraction(high, 2 ** max(-e, 0))
    return half_away(over) if rule == "double_rounding" else half_up(over)


@settings(deadline=None)
@given(st.sampled_from(FIXED), st.integers(-(2**24), 2**24), st.integers(2**30, 2**31 - 1), st.integers(-31, 6))
def test_rules_in_whole_numbers(rule: Rule, acc: int, q: int, e: int) -> None:
    largest = 2**31 - 1
    how = Requantization(
        rule=rule,
        multiplier=np.array([q], np.int32),
        shift=np.array([e], np.int32),
        zero_point=0,
        lowest=-largest - 1,
        highest=largest,
    )
    wanted = min(max(exact(acc, q, e, rule), -largest - 1), largest)
    assert int(requantize(np.array([acc], np.int32), how, np.int32)[0]) == wanted


def test_ties_tell_the_rules_apart() -> None:
    acc = np.array([3, 1, -1, -3, -5], np.int32)
    half = {
        rule: requantize(acc, Requantization.of(rule, np.array([0.5]), zero_point=0, lowest=-9, highest=9), np.int8)
        for rule in RULES
    }
    assert half["float"].tolist() == [2, 0, 0, -2, -2]
    assert half["double_rounding"].tolist() == [2, 1, 0, -1, -2]
    assert half["ruy"].tolist() == [2, 1, 0, -1, -2]
    assert half["single_rounding"].tolist() == [2, 1, -1, -2, -3]
    assert half["int16x8"].tolist() == [2, 1, 0, -1, -2]
    quarter = Requantization.of("double_rounding", np.array([0.25]), zero_point=0, lowest=-9, highest=9)
    upward = Requantization.of("ruy", np.array([0.25]), zero_point=0, lowest=-9, highest=9)
    assert requantize(np.array([-2, -6], np.int32), quarter, np.int8).tolist() == [-1, -2]
    assert requantize(np.array([-2, -6], np.int32), upward, np.int8).tolist() == [0, -1]


@settings(deadline=None)
@given(st.floats(1e-9, 2.0**29))
def test_fixed_point_is_near(factor: float) -> None:
    multiplier, shift = (int(part[0]) for part in fixed_point(np.array([factor])))
    assert 2**30 <= multiplier < 2**31
    assert math.ldexp(multiplier, shift - 31) == pytest.approx(factor, rel=2.0**-31)


def test_fixed_point_at_its_ends() -> None:
    multiplier, shift = fixed_point(np.array([1.0, 1.0 - 2.0**-40, 2.0**-33, 0.5]))
    assert multiplier.tolist() == [2**30, 2**30, 0, 2**30]
    assert shift.tolist() == [1, 1, 0, 0]
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="positive and finite"):
            fixed_point(np.array([wrong]))
    with pytest.raises(ValueError, match="below 2\\^30"):
        fixed_point(np.array([2.0**30]))


GOOD: dict[str, Any] = {"rule": "float", "factor": np.ones(1, np.float32), "zero_point": 0, "lowest": 0, "highest": 9}
Q = {"factor": None, "multiplier": np.ones(1, np.int32), "shift": np.zeros(1, np.int32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "floor"}, "unknown rule floor; there are float"),
        ({"factor": None}, "takes factor"),
        ({**Q, "factor": np.ones(1, np.float32)}, "takes factor, not multiplier and shift"),
        ({"rule": "ruy"}, "rule ruy takes multiplier and shift"),
        ({"factor": np.ones(1)}, "factor must have dtype float32"),
        ({"factor": np.ones(3, np.float32)}, "one factor or one for each of 4 channels, got 3"),
        ({"factor": np.zeros(1, np.float32)}, "finite and positive"),
        ({"factor": np.full(1, np.nan, np.float32)}, "finite and positive"),
        ({"factor": np.full(1, np.inf, np.float32)}, "finite and positive"),
        ({"rule": "ruy", **Q, "shift": np.zeros(2, np.int32)}, "shift must have 1 elements"),
        ({"rule": "ruy", **Q, "shift": np.full(1, 31, np.int32)}, "shifts must be in -31..30, got 31"),
        ({"rule": "int16x8", **Q, "shift": np.full(1, 15, np.int32)}, "shifts must be in -31..14, got 15"),
        ({"rule": "ruy", **Q, "multiplier": np.full(1, -1, np.int32)}, "must not be negative"),
        ({"lowest": -1}, "codes -1..9 do not fit the type of out, 0..255"),
        ({"highest": 256}, "codes 0..256 do not fit"),
        ({"lowest": 5, "highest": 4}, "codes 5..4 do not fit"),
        ({"zero_point": 2**40}, "zero_point must be of 32 bits"),
        ({"zero_point": 2**30}, "further than 2\\^22 from the zero point"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    how = Requantization(**{**GOOD, **change})
    with pytest.raises(ValueError, match=message):
        requantize(np.zeros((2, 4), np.int32), how, np.uint8, axis=1)


@pytest.mark.parametrize(
    ("acc", "rule", "message"),
    [
        (np.zeros(3), "float", "acc must have dtype int32"),
        (np.zeros(3, np.int64), "ruy", "takes accumulators of 32 bits"),
        (np.zeros((4, 6), np.int32)[:, ::2], "float", "gaps"),
    ],
)
def test_wrong_accumulators(acc: np.ndarray, rule: Rule, message: str) -> None:
    how = Requantization.of(rule, np.ones(1), zero_point=0, lowest=0, highest=9)
    with pytest.raises(ValueError, match=message):
        requantize(acc, how, np.uint8)


def test_wrong_type_of_codes() -> None:
    how = Requantization(**GOOD)
    with pytest.raises(ValueError, match="out must have dtype uint8, int8"):
        requantize(np.zeros(3, np.int32), how, np.float32)
