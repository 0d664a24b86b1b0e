"""What the quantization kernels refuse, and what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detent.kernels import quantize as kernels
from tests import cases

X = cases.samples((4, 6))
SCALE = np.array([0.1], np.float32)
ZERO = np.zeros(1, np.int32)


def arguments(**changed: Any) -> dict[str, Any]:
    return {"x": X, "scale": SCALE, "zero_point": ZERO, "qmin": -128, "qmax": 127, **changed}


@pytest.mark.parametrize("gap", cases.GAPS)
def test_views_with_gaps(gap: str) -> None:
    with pytest.raises(ValueError, match=r"gaps.*ascontiguousarray"):
        kernels.fake_quantize(**arguments(x=cases.GAPS[gap](X)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": X.astype(np.float64)}, "x must have dtype float32, got float64"),
        ({"x": X.astype(np.float16)}, "x must have dtype float32, got float16"),
        ({"x": X.astype(">f4")}, "x must have dtype float32"),
        ({"scale": SCALE.astype(np.float64)}, "scale must have dtype float32"),
        ({"zero_point": ZERO.astype(np.int64)}, "zero_point must have dtype int32"),
        ({"scale": np.float32([0.1, 0.2])}, "scale must have 1 elements, got 2"),
        ({"scale": np.float32([[0.1]])}, "scale must be a contiguous vector"),
        ({"scale": np.float32([0.1] * 6)[::2], "axis": 0}, "scale must be a contiguous vector"),
        ({"scale": np.float32([0.0])}, r"scale\[0\] must be finite and positive, got 0"),
        ({"scale": np.float32([-1.0])}, "must be finite and positive"),
        ({"scale": np.float32([np.nan])}, "must be finite and positive"),
        ({"scale": np.float32([np.inf])}, "must be finite and positive"),
        ({"zero_point": np.int32([200])}, r"zero_point\[0\] must be in \[-128, 127\], got 200"),
        ({"qmin": 5, "qmax": 4}, "qmin"),
        ({"qmax": 65536}, "qmax"),
        ({"qmin": -32769}, "qmin"),
        ({"axis": 2, "scale": np.float32([0.1] * 6)}, r"axis 2 is outside x of shape \[4, 6\]"),
        ({"axis": -3}, "axis -3 is outside"),
        ({"axis": 1, "scale": np.float32([0.1] * 4)}, "scale must have 6 elements, got 4"),
        ({"axis": 0, "group_size": 4}, "group_size 4 does not divide the 6 elements of axis 1"),
        ({"axis": 0, "group_size": 0}, "group_size 0"),
        ({"group_size": 2}, "group_size needs the channel axis"),
        ({"axis": 0, "group_size": 2, "scale": np.float32([0.1] * 4)}, "4 channels x 3 groups"),
    ],
)
def test_wrong_numbers(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.fake_quantize(**arguments(**changed))


def test_groups_need_c_order() -> None:
    grid = {"scale": np.full(12, 0.1, np.float32), "zero_point": np.zeros(12, np.int32)}
    with pytest.raises(ValueError, match="C order"):
        kernels.fake_quantize(**arguments(x=np.asfortranarray(X), axis=0, group_size=2, **grid))


@pytest.mark.parametrize("x", [[1.0], 1.0, "x", None])
def test_not_an_array(x: object) -> None:
    with pytest.raises(TypeError, match="x must be a NumPy array or a CPU tensor"):
        kernels.fake_quantize(**arguments(x=x))


def read_only() -> np.ndarray:
    out = np.empty_like(X)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (read_only(), "out is read-only"),
        (np.empty((4, 5), np.float32), r"out must have shape \[4, 6\], got \[4, 5\]"),
        (np.empty((4, 6), np.float64), "out must have dtype float32"),
        (np.empty((6, 4), np.float32).T, "memory order"),
    ],
)
def test_wrong_out(out: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.fake_quantize(**arguments(out=out))


def test_out_that_overlaps_partly() -> None:
    store = np.zeros(30, np.float32)
    with pytest.raises(ValueError, match="overlaps"):
        kernels.fake_quantize(**arguments(x=store[:24], out=store[6:]))
    codes = store[:24].view(np.int8)[:24]
    with pytest.raises(ValueError, match="overlaps"):
        kernels.quantize(**arguments(x=store[:24]), dtype="int8", out=codes)
    grouped = {"scale": np.full(12, 0.1, np.float32), "zero_point": np.zeros(12, np.int32)}
    with pytest.raises(ValueError, match="overlaps"):
        kernels.fake_quantize(
            **arguments(x=store[:24].reshape(4, 6), out=store[6:].reshape(4, 6), axis=0, group_size=2, **grouped)
        )


@pytest.mark.parametrize(
    ("dtype", "qmin", "qmax"),
    [
        ("int8", -129, 127),
        ("int8", 0, 255),
        ("uint8", -1, 255),
        ("int16", 0, 65535),
        ("uint16", -1, 0),
        ("int4", 0, 15),
    ],
)
def test_codes_that_do_not_fit(dtype: str, qmin: int, qmax: int) -> None:
    with pytest.raises(ValueError, match=f"do not fit {dtype}"):
        kernels.quantize(**arguments(qmin=qmin, qmax=qmax), dtype=dtype)


def test_packing() -> None:
    with pytest.raises(ValueError, match="dtype must be one of"):
        kernels.quantize(**arguments(), dtype="int32")
    with pytest.raises(ValueError, match="C order"):
        kernels.quantize(**arguments(x=np.asfortranarray(X), qmin=-8, qmax=7), dtype="int4")
    with pytest.raises(ValueError, match="code 8 at flat position 1 does not fit -8"):
        kernels.pack_int4(np.int8([7, 8]))
    with pytest.raises(ValueError, match="code 16"):
        kernels.pack_int4(np.uint8([16]))
    with pytest.raises(ValueError, match="dtype"):
        kernels.pack_int4(np.int16([1]))
    with pytest.raises(ValueError, match="packed must have 2 elements, got 1"):
        kernels.unpack_int4(np.uint8([1]), [3])
    with pytest.raises(ValueError, match="dtype must be int4 or uint4"):
        kernels.unpack_int4(np.uint8([1]), [2], dtype="int8")
    with pytest.raises(ValueError, match="negative"):
        kernels.unpack_int4(np.uint8([1]), [-2])


def test_dequantize() -> None:
    codes = np.zeros((2, 3), np.int8)
    with pytest.raises(ValueError, match="codes must have dtype"):
        kernels.dequantize(codes.astype(np.int64), SCALE, ZERO)
    with pytest.raises(ValueError, match="codes must have dtype uint8, got int8"):
        kernels.dequantize(codes, SCALE, ZERO, dtype="uint8")
    with pytest.raises(ValueError, match="give `shape`"):
        kernels.dequantize(np.zeros(3, np.uint8), SCALE, ZERO, dtype="int4")
    with pytest.raises(ValueError, match="is for packed codes"):
        kernels.dequantize(codes, SCALE, ZERO, shape=(2, 3))
    with pytest.raises(ValueError, match="codes must have 3 elements, got 2"):
        kernels.dequantize(np.zeros(2, np.uint8), SCALE, ZERO, dtype="int4", shape=(5,))
    with pytest.raises(ValueError, match="zero_point"):
        kernels.dequantize(codes, SCALE, np.int32([200]))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.float32([]), "1 to 256 entries"),
        (np.zeros(257, np.float32), "1 to 256 entries"),
        (np.float32([0, np.nan]), r"table\[1\] must be finite"),
        (np.float32([1, 0]), "increasing"),
        (np.float64([0, 1]), "table must have dtype float32"),
    ],
)
def test_wrong_tables(table: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.lut_fake_quantize(X, SCALE, table)


def test_codebooks_that_do_not_fit_the_channels() -> None:
    x, scale, tables = np.zeros((2, 4), np.float32), np.ones(2, np.float32), np.float32([[0, 1], [0, 2], [0, 3]])
    with pytest.raises(ValueError, match=r"one for each of 2 channels of `axis`, got shape \[3, 2\]"):
        kernels.lut_fake_quantize(x, scale, tables, axis=0)
    with pytest.raises(ValueError, match="one codebook"):
        kernels.lut_fake_quantize(x, np.ones(1, np.float32), tables[:2])
    with pytest.raises(ValueError, match="C order"):
        kernels.lut_fake_quantize(x, scale, np.asfortranarray(tables[:2]), axis=0)
    with pytest.raises(ValueError, match=r"share one codebook"):
        kernels.lut_fake_quantize(x, np.ones(4, np.float32), tables[:2], axis=0, group_size=2)


def test_codes_outside_the_table() -> None:
    with pytest.raises(ValueError, match="code 2 is outside the table of 2 entries"):
        kernels.lut_dequantize(np.uint8([0, 1, 2]), SCALE, np.float32([0, 1]))
