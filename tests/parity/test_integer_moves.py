"""Moves and tables of codes equal their NumPy twins on every instruction set and thread count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detent.kernels.integer_moves import integer_gather, integer_look_up
from detent.kernels.reference import integer as twin
from tests import cases
from tests.fanout import assert_parity

TYPES = {"uint8": np.uint8, "int8": np.int8, "uint16": np.uint16, "int16": np.int16}


def codes(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    ends = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(ends.min, ends.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("samples", "inputs", "outputs"), [(1, 1, 1), (3, 7, 50), (400, 33, 999), (0, 4, 3), (2, 5, 0)]
)
def test_gather(samples: int, inputs: int, outputs: int, dtype: str) -> None:
    x = codes((samples, inputs), TYPES[dtype])
    places = np.random.default_rng(1).integers(-1, inputs, outputs)
    wanted = twin.integer_gather(x, places, fill=7)
    assert_parity(lambda: integer_gather(x, places, fill=7), wanted)


@pytest.mark.parametrize("entries", ["uint8", "int16"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", cases.SIZES)
def test_look_up(size: str, dtype: str, entries: str) -> None:
    x = codes((cases.SIZES[size],), TYPES[dtype])
    table = codes((2 ** (8 * x.itemsize),), TYPES[entries], 3)
    assert_parity(lambda: integer_look_up(x, table), twin.integer_look_up(x, table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 3))}, "x must have dtype uint8"),
        ({"x": np.zeros(3, np.uint8)}, "x must be \\[samples, codes\\]"),
        ({"x": np.zeros((2, 6), np.uint8)[:, ::2]}, "must be in C order"),
        ({"places": np.zeros(4, np.int32)}, "places must have dtype int64"),
        ({"places": np.array([0, 3])}, "place 3 is not among the 3"),
        ({"fill": 256}, "fill 256 is no code"),
    ],
)
def test_refusals_of_gather(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"x": np.zeros((2, 3), np.uint8), "places": np.zeros(4, np.int64), "fill": 0, **change}
    with pytest.raises(ValueError, match=message):
        integer_gather(given.pop("x"), given.pop("places"), **given)


@pytest.mark.parametrize(
    ("x", "table", "message"),
    [
        (np.zeros(3, np.int32), np.zeros(256, np.uint8), "x must have codes of 8 or 16 bits"),
        (np.zeros(3, np.int8), np.zeros(255, np.uint8), "table must have 256 entries"),
        (np.zeros(3, np.int16), np.zeros(256, np.uint8), "table must have 65536 entries"),
        (np.zeros(3, np.int8), np.zeros(256, np.float32), "table must have dtype"),
    ],
)
def test_refusals_of_look_up(x: np.ndarray, table: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        integer_look_up(x, table)
