"""Quantization kernels equal their NumPy twins bit for bit, on every instruction set and thread count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detent.kernels import quantize as kernels
from detent.kernels.reference import quantize as twins
from tests import cases
from tests.fanout import assert_parity

# qmin, qmax, zero point: signed and unsigned, narrow, one bit to sixteen, zero points at the ends.
RANGES = {
    "int8": (-128, 127, 0),
    "int8_narrow": (-127, 127, 0),
    "uint8": (0, 255, 0),
    "uint8_zero_at_end": (0, 255, 255),
    "int8_uniform": (-128, 127, -37),
    "int4": (-8, 7, 0),
    "uint4": (0, 15, 9),
    "int2": (-2, 1, 0),
    "uint1": (0, 1, 0),
    "int16": (-32768, 32767, 0),
    "uint16": (0, 65535, 40000),
    "one_code": (3, 3, 3),
}
DTYPES = {
    "int8": "int8",
    "int8_narrow": "int8",
    "uint8": "uint8",
    "uint8_zero_at_end": "uint8",
    "int8_uniform": "int8",
    "int4": "int4",
    "uint4": "uint4",
    "int2": "int4",
    "uint1": "uint4",
    "int16": "int16",
    "uint16": "uint16",
    "one_code": "uint8",
}


def one(scale: float, zero_point: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return np.array([scale], np.float32), np.array([zero_point], np.int32)


def per_channel(n: int, qmin: int, qmax: int, *, power_of_two: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    scale = rng.uniform(0.01, 0.3, n).astype(np.float32)
    if power_of_two:
        scale = np.exp2(np.rint(np.log2(scale))).astype(np.float32)
    return scale, rng.integers(qmin, qmax + 1, n).astype(np.int32)


def check_all(x: np.ndarray, grid: tuple[np.ndarray, np.ndarray], name: str, **where: Any) -> None:
    """All four kernels of an affine grid against their twins."""
    qmin, qmax, _ = RANGES[name]
    numbers = (*grid, qmin, qmax)
    expected = twins.fake_quantize(x, *numbers, **where)
    assert_parity(lambda: kernels.fake_quantize(x, *numbers, **where), expected)
    assert_parity(lambda: kernels.in_range_mask(x, *numbers, **where), twins.in_range_mask(x, *numbers, **where))
    dtype = DTYPES[name]
    packed = dtype in ("int4", "uint4")
    if packed and not x.flags.c_contiguous:
        return
    codes = twins.quantize(x, *numbers, dtype=dtype, **where)
    assert_parity(lambda: kernels.quantize(x, *numbers, dtype=dtype, **where), codes)
    back = {"dtype": dtype, "shape": x.shape} if packed else {}
    values = twins.dequantize(codes, *grid, **where, **back)
    assert_parity(lambda: kernels.dequantize(codes, *grid, **where, **back), values)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("scale", cases.SCALES)
def test_awkward_floats(scale: str, name: str) -> None:
    step = cases.SCALES[scale]
    with np.errstate(over="ignore"):
        x = np.concatenate([cases.all_floats(), cases.NONFINITE, cases.ties(step)])
    check_all(x, one(step, RANGES[name][2]), name)


@pytest.mark.parametrize("size", cases.SIZES)
def test_awkward_sizes(size: str) -> None:
    x = cases.awkward(cases.SIZES[size], finite=False)
    for name in ("int8", "uint4", "uint16"):
        check_all(x, one(0.037, RANGES[name][2]), name)
        check_all(x, one(2.0**-5, RANGES[name][2]), name)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_every_axis_of_every_layout(shape: str, layout: str) -> None:
    x = cases.LAYOUTS[layout](cases.awkward(cases.SHAPES[shape], finite=False))
    check_all(x, one(0.05), "int8")
    for axis in range(-x.ndim, x.ndim):
        for power_of_two in (False, True):
            grid = per_channel(x.shape[axis], -128, 127, power_of_two=power_of_two)
            check_all(x, grid, "int8", axis=axis)
    if x.ndim > 1:
        check_all(x, per_channel(x.shape[1], 0, 15), "uint4", axis=1)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_memory_order_is_kept(layout: str) -> None:
    x = cases.LAYOUTS[layout](cases.samples((2, 5, 6, 7)))
    grid = per_channel(5, 0, 255)
    for result in (
        kernels.fake_quantize(x, *grid, 0, 255, axis=1),
        kernels.in_range_mask(x, *grid, 0, 255, axis=1),
        kernels.quantize(x, *grid, 0, 255, dtype="uint8", axis=1),
    ):
        assert [s // result.itemsize for s in result.strides] == [s // x.itemsize for s in x.strides]


@pytest.mark.parametrize("name", ["int4", "int8_uniform"])
@pytest.mark.parametrize(
    ("shape", "axis", "group_size"),
    [((6, 8), 0, 4), ((6, 8), 0, 8), ((6, 8), 1, 3), ((4, 6, 3, 3), 0, 2), ((6, 5, 3), 1, 2), ((3, 64), -2, 1)],
)
def test_groups(shape: tuple[int, ...], axis: int, group_size: int, name: str) -> None:
    x = cases.awkward(shape, finite=False)
    groups = shape[1 - axis % len(shape)] // group_size
    qmin, qmax, _ = RANGES[name]
    grid = per_channel(shape[axis] * groups, qmin, qmax)
    check_all(x, grid, name, axis=axis, group_size=group_size)


def test_groups_count_channel_first() -> None:
    x = np.ones((2, 4), np.float32)
    scale = np.array([1, 2, 4, 8], np.float32)
    result = kernels.quantize(x * 8, scale, np.zeros(4, np.int32), -128, 127, dtype="int8", axis=0, group_size=2)
    np.testing.assert_array_equal(result, [[8, 8, 4, 4], [2, 2, 1, 1]])


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_in_place_and_out(layout: str) -> None:
    x = cases.LAYOUTS[layout](cases.awkward(cases.SHAPES["many_blocks"], finite=False))
    grid = per_channel(x.shape[1], -128, 127)
    expected = twins.fake_quantize(x, *grid, -128, 127, axis=1)
    for _ in range(2):
        out = np.empty_like(x)
        assert kernels.fake_quantize(x, *grid, -128, 127, axis=1, out=out) is out
        np.testing.assert_array_equal(out, expected)

    def in_place() -> np.ndarray:
        y = x.copy(order="K")
        result = kernels.fake_quantize(y, *grid, -128, 127, axis=1, out=y)
        assert result is y
        return np.ascontiguousarray(y)

    assert_parity(in_place, expected)


@pytest.mark.parametrize("shift", [0, 1, 5])
@pytest.mark.parametrize("axis", [None, 1])
def test_large_outputs_are_streamed_alike(axis: int | None, shift: int) -> None:
    # Above 16 MiB the kernel bypasses the cache; cover its unaligned head and tail, and rows that end inside a page.
    shape = (4, 3, 613, 583)
    n = int(np.prod(shape))
    x = cases.awkward(n + shift)[shift:].reshape(shape)
    store = np.empty(n + shift, np.float32)
    grid = one(0.03) if axis is None else per_channel(3, -128, 127)
    out = store[shift:].reshape(shape)
    expected = twins.fake_quantize(x, *grid, -128, 127, axis=axis)
    assert_parity(lambda: kernels.fake_quantize(x, *grid, -128, 127, axis=axis, out=out), expected)
    codes = twins.quantize(x, *grid, -128, 127, dtype="int8", axis=axis)
    expected = twins.dequantize(codes, *grid, axis=axis)
    assert_parity(lambda: kernels.dequantize(codes, *grid, axis=axis, out=out), expected)


def test_large_channels_last_is_streamed_alike() -> None:
    x = cases.LAYOUTS["channels_last"](cases.awkward((3, 97, 125, 121)))
    grid = per_channel(97, -128, 127)
    expected = twins.fake_quantize(x, *grid, -128, 127, axis=1)
    assert_parity(lambda: kernels.fake_quantize(x, *grid, -128, 127, axis=1), expected)


def test_int32_codes() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-(2**31), 2**31, 3000, dtype=np.int64).astype(np.int32)
    codes[:4] = [-(2**31), 2**31 - 1, 2**24 + 1, -(2**24) - 1]
    for zero_point in (0, 7, -3):
        grid = one(3.1e-7, zero_point)
        assert_parity(lambda grid=grid: kernels.dequantize(codes, *grid), twins.dequantize(codes, *grid))


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 1023, 1024, 1025, 100_001])
def test_pack(n: int, dtype: str) -> None:
    low, kind = (-8, np.int8) if dtype == "int4" else (0, np.uint8)
    codes = np.random.default_rng(n).integers(low, low + 16, n).astype(kind)
    packed = twins.pack_int4(codes)
    assert_parity(lambda: kernels.pack_int4(codes), packed)
    assert_parity(lambda: kernels.unpack_int4(packed, [n], dtype=dtype), codes)


def test_packed_order() -> None:
    np.testing.assert_array_equal(kernels.pack_int4(np.array([[1, -1], [7, -8], [3, 0]], np.int8)), [0xF1, 0x87, 0x03])
    np.testing.assert_array_equal(kernels.pack_int4(np.array([15, 2, 9], np.uint8)), [0x2F, 0x09])


TABLES = {
    "one_entry": [0.0],
    "two": [-1.0, 1.0],
    "int4_like": np.arange(-8, 8),
    "uneven": [-128, -60, -31, -11, -3, 0, 2, 9, 27, 66, 127],
    "repeated": [-2, -2, 0, 0, 0, 1, 1],
    "many": np.cumsum(np.random.default_rng(3).integers(0, 4, 100)) - 90,
    "full": np.arange(-128, 128),
    "fractions": [-1.5, -0.3, -1e-30, 1e-38, 0.1, 0.7],
}


@pytest.mark.parametrize("scale", [1.0, 2.0**-4, 0.3, 1e-38])
@pytest.mark.parametrize("table", TABLES)
def test_lut(table: str, scale: float) -> None:
    levels = np.asarray(TABLES[table], np.float32)
    ties = (levels[:-1] + levels[1:]) / 2 * np.float32(scale)
    x = np.concatenate([cases.all_floats(), cases.NONFINITE, ties, levels, cases.samples(5000, spread=60 * scale)])
    x = x.astype(np.float32)
    steps = np.array([scale], np.float32)
    codes = twins.lut_quantize(x, steps, levels)
    assert_parity(lambda: kernels.lut_quantize(x, steps, levels), codes)
    assert_parity(lambda: kernels.lut_dequantize(codes, steps, levels), twins.lut_dequantize(codes, steps, levels))
    assert_parity(lambda: kernels.lut_fake_quantize(x, steps, levels), twins.lut_fake_quantize(x, steps, levels))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", ["small_map", "single_pixel", "many_blocks", "no_samples"])
def test_lut_layouts(shape: str, layout: str) -> None:
    x = cases.LAYOUTS[layout](cases.awkward(cases.SHAPES[shape], finite=False))
    levels = np.asarray(TABLES["uneven"], np.float32)
    for axis in range(x.ndim):
        scale, _ = per_channel(x.shape[axis], 0, 1)
        where = {"axis": axis}
        codes = twins.lut_quantize(x, scale, levels, **where)
        dense = np.empty_like(x, dtype=np.uint8)
        dense[...] = codes
        assert_parity(lambda a=(x, scale, levels), w=where: kernels.lut_quantize(*a, **w), codes)
        assert_parity(
            lambda a=(dense, scale, levels), w=where: kernels.lut_dequantize(*a, **w),
            twins.lut_dequantize(codes, scale, levels, **where),
        )
        assert_parity(
            lambda a=(x, scale, levels), w=where: kernels.lut_fake_quantize(*a, **w),
            twins.lut_fake_quantize(x, scale, levels, **where),
        )


def test_lut_groups() -> None:
    x = cases.awkward((6, 8))
    levels = np.asarray(TABLES["uneven"], np.float32)
    scale, _ = per_channel(6 * 4, 0, 1)
    where = {"axis": 0, "group_size": 2}
    expected = twins.lut_fake_quantize(x, scale, levels, **where)
    assert_parity(lambda: kernels.lut_fake_quantize(x, scale, levels, **where), expected)


def test_lut_equals_the_affine_grid_between_ties() -> None:
    x = cases.samples(4000, spread=3.0)
    grid = one(0.4)
    table = np.arange(-8, 8, dtype=np.float32)
    np.testing.assert_array_equal(kernels.lut_fake_quantize(x, grid[0], table), kernels.fake_quantize(x, *grid, -8, 7))


def test_tensors_share_memory() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 6, 5, 5).to(memory_format=torch.channels_last)
    scale, zero_point = torch.rand(6) + 0.1, torch.zeros(6, dtype=torch.int32)
    out = torch.empty_like(x)
    kernels.fake_quantize(x, scale, zero_point, -8, 7, axis=1, out=out)
    expected = twins.fake_quantize(x.numpy(), scale.numpy(), zero_point.numpy(), -8, 7, axis=1)
    np.testing.assert_array_equal(out.numpy(), expected)
    with pytest.raises(TypeError, match="requires grad"):
        kernels.fake_quantize(x.requires_grad_(), scale, zero_point, -8, 7, axis=1)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", ["small_map", "single_pixel", "no_samples"])
def test_codebooks_for_each_channel(shape: str, layout: str) -> None:
    x = cases.LAYOUTS[layout](cases.awkward(cases.SHAPES[shape], finite=False))
    for axis in range(x.ndim):
        n = x.shape[axis]
        if n == 0:
            continue
        scale, _ = per_channel(n, 0, 1)
        levels = np.sort(cases.samples((n, 5), seed=axis) * 30, axis=1)
        codes = twins.lut_quantize(x, scale, levels, axis=axis)
        dense = np.empty_like(x, dtype=np.uint8)
        dense[...] = codes
        a, w = (scale, levels), {"axis": axis}
        assert_parity(lambda a=a, w=w: kernels.lut_quantize(x, *a, **w), codes)
        values = twins.lut_dequantize(codes, *a, **w)
        assert_parity(lambda a=a, w=w, dense=dense: kernels.lut_dequantize(dense, *a, **w), values)
        rounded = twins.lut_fake_quantize(x, *a, **w)
        assert_parity(lambda a=a, w=w: kernels.lut_fake_quantize(x, *a, **w), rounded)
