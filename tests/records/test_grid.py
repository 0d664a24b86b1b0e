"""The grid: steps and zero points follow from thresholds and ranges by one rule each."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from detent.errors import ConfigError
from detent.records.grid import Grid

REAL = st.floats(-1e6, 1e6, width=32)
POSITIVE = st.floats(2.0**-20, 2.0**20, width=32)


@given(POSITIVE, st.integers(2, 16), st.booleans())
def test_symmetric_step_is_threshold_over_half_the_codes(threshold: float, bits: int, signed: bool) -> None:
    grid = Grid(kind="symmetric", bits=bits, signed=signed, threshold=np.float32(threshold))
    assert float(grid.scale[0]) == np.float32(threshold) / 2.0 ** (bits - signed)
    assert (grid.qmin, grid.qmax) == ((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1))
    low, high = grid.limits
    assert high[0] == pytest.approx(threshold - float(grid.scale[0]), rel=1e-12)
    assert low[0] == (-np.float32(threshold) if signed else 0)


@given(REAL, REAL, st.integers(1, 16), st.booleans())
def test_uniform_grid_holds_zero_and_covers_the_range(a: float, b: float, bits: int, signed: bool) -> None:
    lower, upper = min(a, b), max(a, b)
    assume(max(abs(lower), abs(upper)) > 1e-30)  # a tensor of zeros has a test of its own
    grid = Grid(kind="uniform", bits=bits, signed=signed, lower=np.float32(lower), upper=np.float32(upper))
    zero_point, scale = int(grid.zero_point[0]), float(grid.scale[0])
    assert grid.qmin <= zero_point <= grid.qmax
    low, high = grid.limits
    assert low[0] <= 0 <= high[0]
    # The zero point is rounded to a code, so either end may move by half a step.
    assert low[0] == pytest.approx(min(lower, 0.0), abs=0.51 * scale)
    assert high[0] == pytest.approx(max(upper, 0.0), abs=0.51 * scale)


@given(st.lists(POSITIVE, min_size=1, max_size=5), st.integers(2, 8), st.booleans())
def test_json_round_trip_is_exact(thresholds: list[float], bits: int, narrow: bool) -> None:
    grid = Grid(kind="symmetric", bits=bits, signed=True, threshold=np.float32(thresholds), axis=0, narrow_range=narrow)
    back = Grid.from_dict(json.loads(json.dumps(grid.to_dict())))
    assert back == grid
    assert back.scale.tobytes() == grid.scale.tobytes()


def test_editing_bits_recomputes_the_step() -> None:
    data = Grid(kind="uniform", bits=8, signed=False, lower=np.float32(-1), upper=np.float32(3)).to_dict()
    edited = Grid.from_dict({**data, "bits": 4})
    assert edited.scale[0] == np.float32(4 / 15)
    assert edited.zero_point[0] == 4


def test_a_tensor_of_zeros_gets_a_valid_grid() -> None:
    grid = Grid(kind="uniform", bits=8, signed=True, lower=np.float32(0), upper=np.float32(0))
    assert grid.scale[0] > 0
    assert grid.zero_point[0] == -128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "symetric"}, "symmetric"),
        ({"bits": 0}, "1..16|2..16"),
        ({"bits": 17}, "2..16"),
        ({"bits": 8.0}, "whole number"),
        ({"bits": True}, "whole number"),
        ({"bits": 1}, "2..16"),
        ({"threshold": 0.0}, "positive"),
        ({"threshold": -1.0}, "positive"),
        ({"threshold": float("nan")}, "finite"),
        ({"threshold": float("inf")}, "finite"),
        ({"threshold": 1e300}, "finite"),
        ({"threshold": "wide"}, "number"),
        ({"threshold": []}, "not empty"),
        ({"threshold": [1.0, 2.0]}, "one entry"),
        ({"threshold": None}, "takes `threshold`"),
        ({"lower": 1.0}, "neither"),
        ({"kind": "power_of_two", "threshold": 3.0}, r"2\.0|4\.0"),
        ({"group_size": 4}, "axis"),
        ({"kind": "uniform"}, "lower"),
        ({"narrow_range": True, "signed": False}, "narrow_range"),
        ({"table": [1.0]}, "lut"),
        ({"kind": "lut"}, "7"),
        ({"kind": "lut", "bits": 2, "table": [0.0, 1.0]}, "4 values"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    data = {"kind": "symmetric", "bits": 8, "signed": True, "threshold": 1.0}
    with pytest.raises(ConfigError, match=message):
        Grid.from_dict({**data, **changes})


def test_unknown_and_missing_keys() -> None:
    with pytest.raises(ConfigError, match="threshold"):
        Grid.from_dict({"kind": "symmetric", "bits": 8, "signed": True, "treshold": 1.0})
    with pytest.raises(ConfigError, match="signed"):
        Grid.from_dict({"kind": "symmetric", "bits": 8, "threshold": 1.0})


def test_codes_of_a_codebook_are_places_in_its_table() -> None:
    grid = Grid.from_dict(
        {"kind": "lut", "bits": 3, "signed": True, "threshold": [1.0, 2.0], "axis": 0, "table": list(range(-4, 4))}
    )
    assert grid.dtype == "uint4"
    assert grid.has_bias_step
    assert grid.scale.tolist() == [1 / 128, 2 / 128]
    assert str(grid) == "lut3s x2 [-0.0625, 0.04688]"
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


def test_codebooks_for_each_channel() -> None:
    data = {"kind": "lut", "bits": 2, "signed": True, "threshold": [1.0, 2.0], "axis": 0}
    tables = [[-128.0, -3.0, 0.0, 64.0], [-64.0, 0.0, 1.0, 127.0]]
    grid = Grid.from_dict({**data, "table": tables})
    assert grid.to_dict()["table"] == tables
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    assert [limit.tolist() for limit in grid.limits] == [[-1.0, -1.0], [0.5, 127 / 64]]
    for wrong in (tables[:1], [*tables, tables[0]], [tables[0], tables[1][::-1]], [[0.0, 1.0]] * 2):
        with pytest.raises(ConfigError, match="codebook"):
            Grid.from_dict({**data, "table": wrong})


def test_a_grid_in_groups_says_so() -> None:
    grid = Grid.from_dict(
        {"kind": "symmetric", "bits": 4, "signed": True, "threshold": [1.0] * 6, "axis": 0, "group_size": 16}
    )
    assert not grid.has_bias_step
    assert "x6 (groups of 16)" in str(grid)


def test_rounding_takes_the_nearest_value_of_the_grid() -> None:
    values = np.array([[-0.3, 0.2], [5.0, 0.6]], np.float32)
    plain = Grid.from_dict({"kind": "symmetric", "bits": 2, "signed": True, "threshold": [1.0, 2.0], "axis": 0})
    np.testing.assert_array_equal(plain.round(values), np.array([[-0.5, 0.0], [1.0, 1.0]], np.float32))
    table = {"kind": "lut", "bits": 2, "signed": True, "threshold": 1.0, "table": [-128, -32, 32, 64]}
    codebook = Grid.from_dict(table)
    np.testing.assert_array_equal(codebook.round(values), np.array([[-0.25, 0.25], [0.5, 0.5]], np.float32))
