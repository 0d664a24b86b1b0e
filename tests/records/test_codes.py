"""Codes of kernels in a plan: packed as tightly as they are, refused when they or their grid were edited."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detent.errors import ConfigError
from detent.records.codes import KernelCodes
from detent.records.grid import Grid
from detent.records.tensor_plan import TensorPlan

TABLE = np.float32([-100, -3, 0, 70])


def symmetric(bits: int, threshold: float = 1.0) -> Grid:
    return Grid(kind="symmetric", bits=bits, signed=True, threshold=np.float32([threshold]))


def codebook() -> Grid:
    return Grid(kind="lut", bits=2, signed=True, threshold=np.float32([1.5]), table=TABLE)


def entry(grid: Grid, codes: npt.NDArray[Any]) -> TensorPlan:
    return TensorPlan(grid=grid, codes=KernelCodes(codes=codes, method="gptq", grid=grid))


@given(st.integers(2, 16), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_codes_of_any_width_and_shape_survive_a_saved_plan(bits: int, shape: list[int], seed: int) -> None:
    grid = symmetric(bits)
    codes = np.random.default_rng(seed).integers(grid.qmin, grid.qmax + 1, shape)
    before = entry(grid, codes)
    after = TensorPlan.from_dict(json.loads(json.dumps(before.to_dict())), "layer")
    assert after == before
    assert after.codes is not None
    assert np.array_equal(after.codes.codes, codes)
    assert after.codes.codes.dtype == grid.storage


def test_they_take_no_more_bits_than_they_have() -> None:
    data = entry(symmetric(3), np.zeros((5, 7), int)).to_dict()
    assert isinstance(data, dict)
    assert len(data["codes"]["packed"]) == 20  # 105 bits are 14 bytes, and 14 bytes 20 letters


def test_places_in_a_codebook() -> None:
    found = entry(codebook(), np.array([3, 0, 2]))
    read = TensorPlan.from_dict(found.to_dict(), "layer")
    kernel = np.zeros(3, np.float32)
    assert read.codes_of(kernel).tolist() == [3, 0, 2]
    assert np.array_equal(read.rounded(kernel), TABLE[[3, 0, 2]] * np.float32(1.5 / 128))


def test_a_kernel_with_codes_is_not_rounded_to_nearest() -> None:
    grid = symmetric(4, 8.0)  # steps of 1
    kernel = np.float32([0.4, 0.6, -2.5])
    assert TensorPlan(grid=grid).rounded(kernel).tolist() == [0.0, 1.0, -2.0]
    assert entry(grid, np.array([1, 0, -3])).rounded(kernel).tolist() == [1.0, 0.0, -3.0]


def data_with(**changes: Any) -> Any:
    data = json.loads(json.dumps(entry(symmetric(4), np.arange(-8, 8).reshape(4, 4)).to_dict()))
    data["codes"] = {**data["codes"], **changes}
    return data


def other_grid() -> Any:
    data = data_with()
    data["grid"]["threshold"] = 2.0
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (data_with(shape=[4, 5]), "edited"),
        (data_with(shape=[16, 2**60]), "edited"),
        (data_with(shape="16"), "list of sizes"),
        (data_with(shape=[-4, -4]), "list of sizes"),
        (data_with(packed="!"), "base64"),
        (data_with(packed="AAAA"), "edited"),
        (data_with(check="0"), "edited"),
        (data_with(packed=None), "edited"),
        (data_with(colour=1), "colour"),
        (other_grid(), "edited"),
        ({**data_with(), "codes": 5}, "object"),
        ({**data_with(), "gain": 2.0}, "rounded to nearest"),
    ],
)
def test_what_was_edited_is_refused_with_the_layer(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TensorPlan.from_dict(data, "conv1")
    assert caught.value.where == "conv1"


@pytest.mark.parametrize(("grid", "code"), [(symmetric(4), 8), (symmetric(4), -9), (codebook(), 4), (codebook(), -1)])
def test_a_code_off_the_grid_is_refused(grid: Grid, code: int) -> None:
    with pytest.raises(ConfigError, match="do not lie in"):
        KernelCodes(codes=np.array([0, code]), method="edited", grid=grid)


def test_a_narrow_grid_has_no_lowest_code() -> None:
    grid = Grid(kind="symmetric", bits=4, signed=True, threshold=np.float32([1]), narrow_range=True)
    with pytest.raises(ConfigError, match=r"-7\.\.7"):
        KernelCodes(codes=np.array([-8]), method="edited", grid=grid)
