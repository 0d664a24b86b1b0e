"""Sums of codes equal their NumPy twin on every instruction set and thread count."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detent.kernels.integer_sum import integer_sum, integer_table_sum, integer_value_sum
from detent.kernels.reference import integer as twin
from tests import cases
from tests.fanout import assert_parity

TYPES = {"uint8": np.uint8, "int8": np.int8, "uint16": np.uint16, "int16": np.int16}
GIVEN: dict[str, Any] = {"factor_a": 0.3712, "factor_b": 1.1171, "rest": -40.25, "lowest": 0, "highest": 255}


def codes(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    ends = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(ends.min, ends.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", cases.SIZES)
def test_sizes(size: str, dtype: str) -> None:
    a, b = (codes((cases.SIZES[size],), TYPES[dtype], seed) for seed in (1, 2))
    ends = np.iinfo(TYPES[dtype])
    given = {**GIVEN, "lowest": int(ends.min) + 3, "highest": int(ends.max)}
    wanted = twin.integer_sum(a, b, TYPES[dtype], **given)
    assert_parity(lambda: integer_sum(a, b, TYPES[dtype], **given), wanted)


def test_different_types_and_many_elements() -> None:
    a, b = codes((7, 3000, 5), np.uint8, 1), codes((7, 3000, 5), np.int16, 2)
    wanted = twin.integer_sum(a, b, np.int8, **{**GIVEN, "lowest": -128, "highest": 127})
    assert_parity(lambda: integer_sum(a, b, np.int8, **{**GIVEN, "lowest": -128, "highest": 127}), wanted)


@settings(deadline=None)
@given(st.floats(2.0**-20, 2.0**20, width=32), st.floats(2.0**-20, 2.0**20, width=32), st.floats(-1000, 1000, width=32))
def test_any_factors(factor_a: float, factor_b: float, rest: float) -> None:
    a, b = codes((64,), np.int8, 1), codes((64,), np.uint8, 2)
    given = {"factor_a": factor_a, "factor_b": factor_b, "rest": rest, "lowest": -(2**15), "highest": 2**15 - 1}
    np.testing.assert_array_equal(integer_sum(a, b, np.int16, **given), twin.integer_sum(a, b, np.int16, **given))


def test_each_step_is_rounded_once() -> None:
    every = np.arange(256, dtype=np.uint8)
    a, b = (np.ascontiguousarray(one) for one in np.meshgrid(every, every))
    by_a, by_b, rest = (np.float32(float.fromhex(one)) for one in ("0x1.400004p-1", "0x1.8p-1", "-0x1.4p+4"))
    given: dict[str, Any] = {"factor_a": float(by_a), "factor_b": float(by_b), "rest": float(rest)}
    fused = integer_sum(a, b, np.uint8, **given, lowest=0, highest=255)
    places = np.arange(0, a.size, 61)
    for x, y, found in zip(a.flat[places], b.flat[places], fused.flat[places], strict=True):
        inner = Fraction(float(np.float32(float(int(y) * Fraction(float(by_b)) + Fraction(float(rest))))))
        total = np.float32(float(int(x) * Fraction(float(by_a)) + inner))
        assert found == min(max(round(Fraction(float(total))), 0), 255)
    # A product rounded by itself ends on the other side of some ties.
    separate = np.rint(a * by_a + (b * by_b + rest)).clip(0, 255)
    assert np.sum(fused != separate) == 177


def table(dtype: Any, seed: int) -> np.ndarray:
    ends = np.iinfo(np.int32)
    rng = np.random.default_rng(seed)
    return rng.integers(ends.min, ends.max, 2 ** (8 * np.dtype(dtype).itemsize), np.int32, endpoint=True)


@pytest.mark.parametrize("other", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", ["1", "1025"])
def test_sums_of_tables(size: str, dtype: str, other: str) -> None:
    a, b = codes((int(size),), TYPES[dtype], 1), codes((int(size),), TYPES[other], 2)
    tables = table(TYPES[dtype], 3), table(TYPES[other], 4)
    wanted = twin.integer_table_sum(a, b, *tables)
    assert_parity(lambda: integer_table_sum(a, b, *tables), wanted)


def test_many_sums_of_tables() -> None:
    a, b = codes((3, 50_000), np.int8, 1), codes((3, 50_000), np.uint8, 2)
    tables = table(np.int8, 3), table(np.uint8, 4)
    assert_parity(lambda: integer_table_sum(a, b, *tables), twin.integer_table_sum(a, b, *tables))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros(3)}, "a must have"),
        ({"b": np.zeros(4, np.uint8)}, "must have one shape"),
        ({"table_a": np.zeros(255, np.int32)}, "table_a"),
        ({"table_b": np.zeros(256, np.int64)}, "table_b"),
        ({"b": np.zeros(6, np.uint8)[::2]}, "must be in C order"),
    ],
)
def test_refusals_of_tables(change: dict[str, Any], message: str) -> None:
    plain: dict[str, Any] = {"a": np.zeros(3, np.uint8), "b": np.zeros(3, np.uint8)}
    plain |= {"table_a": np.zeros(256, np.int32), "table_b": np.zeros(256, np.int32), **change}
    with pytest.raises(ValueError, match=message):
        integer_table_sum(**plain)


VALUES: dict[str, Any] = {"scales": (0.0371, -0.0113, 0.0291), "zero_points": (3, 100, 21), "lowest": 5, "highest": 250}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", cases.SIZES)
def test_sums_of_values(size: str, dtype: str) -> None:
    a, b = (codes((cases.SIZES[size],), TYPES[dtype], seed) for seed in (1, 2))
    wanted = twin.integer_value_sum(a, b, np.uint8, **VALUES)
    assert_parity(lambda: integer_value_sum(a, b, np.uint8, **VALUES), wanted)


@settings(deadline=None)
@given(st.tuples(*[st.floats(2.0**-20, 2.0**20, width=32)] * 3), st.tuples(*[st.integers(-128, 127)] * 3))
def test_sums_of_any_values(scales: tuple[float, float, float], zero_points: tuple[int, int, int]) -> None:
    a, b = codes((64,), np.int8, 1), codes((64,), np.int8, 2)
    given = {"scales": scales, "zero_points": zero_points, "lowest": -(2**15), "highest": 2**15 - 1}
    wanted = twin.integer_value_sum(a, b, np.int16, **given)
    np.testing.assert_array_equal(integer_value_sum(a, b, np.int16, **given), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros(3)}, "a must have dtype uint8"),
        ({"b": np.zeros(4, np.uint8)}, "must have one shape"),
        ({"scales": (float("inf"), 1.0, 1.0)}, "scales must be finite"),
        ({"scales": (1.0, 1.0, -1.0)}, "the scale of out must be positive"),
        ({"zero_points": (0, -1, 0)}, "the zero point -1 is no code"),
        ({"highest": 256}, "do not fit the type of out"),
    ],
)
def test_refusals_of_values(change: dict[str, Any], message: str) -> None:
    given = {"a": np.zeros(3, np.uint8), "b": np.zeros(3, np.uint8), "dtype": np.uint8, **VALUES, **change}
    with pytest.raises(ValueError, match=message):
        integer_value_sum(given.pop("a"), given.pop("b"), given.pop("dtype"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros(3)}, "a must have dtype uint8"),
        ({"b": np.zeros(3, np.int32)}, "b must have codes of 8 or 16 bits"),
        ({"b": np.zeros(4, np.uint8)}, "must have one shape"),
        ({"b": np.zeros(6, np.uint8)[::2]}, "must be in C order"),
        ({"factor_a": 0.0}, "factor_a must be in"),
        ({"factor_b": float("nan")}, "factor_b must be in"),
        ({"rest": 2.0**25}, "rest must be within"),
        ({"highest": 256}, "do not fit the type of out"),
        ({"lowest": 256}, "do not fit the type of out"),
        ({"dtype": np.float32}, "out must have dtype uint8"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    given = {"a": np.zeros(3, np.uint8), "b": np.zeros(3, np.uint8), "dtype": np.uint8, **GIVEN, **change}
    with pytest.raises(ValueError, match=message):
        integer_sum(given.pop("a"), given.pop("b"), given.pop("dtype"), **given)
