"""Laws of quantization that hold for every tensor and grid, checked on generated ones."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from detent.kernels.error import tensor_error
from detent.kernels.quantize import (
    dequantize,
    fake_quantize,
    in_range_mask,
    lut_fake_quantize,
    pack_int4,
    quantize,
    unpack_int4,
)

settings.register_profile("laws", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("laws")

FLOATS = st.floats(-1e6, 1e6, width=32)
TENSORS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=FLOATS)
SCALES = st.floats(2.0**-20, 2.0**10, width=32)
BITS = st.integers(1, 16)


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Scale, zero point, qmin, qmax."""
    bits, signed = draw(BITS), draw(st.booleans())
    qmin = -(1 << (bits - 1)) if signed else 0
    qmax = qmin + (1 << bits) - 1
    zero_point = draw(st.integers(qmin, qmax))
    return np.array([draw(SCALES)], np.float32), np.array([zero_point], np.int32), qmin, qmax


def dtype_of(qmin: int, qmax: int) -> str:
    wide = "8" if max(-2 * qmin, qmax) <= (127 if qmin < 0 else 255) or (qmin >= -128 and qmax <= 127) else "16"
    return ("int" if qmin < 0 else "uint") + wide


@given(TENSORS, grids())
def test_quantizing_twice_is_quantizing_once(x: np.ndarray, grid: tuple) -> None:
    once = fake_quantize(x, *grid)
    np.testing.assert_array_equal(fake_quantize(once, *grid), once)
    assert in_range_mask(once, *grid).all()


@given(TENSORS, grids())
def test_codes_and_back_is_fake_quantization(x: np.ndarray, grid: tuple) -> None:
    scale, zero_point, qmin, qmax = grid
    codes = quantize(x, *grid, dtype=dtype_of(qmin, qmax))
    assert codes.min() >= qmin
    assert codes.max() <= qmax
    np.testing.assert_array_equal(dequantize(codes, scale, zero_point), fake_quantize(x, *grid))


@given(TENSORS, grids(), st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_the_result(x: np.ndarray, grid: tuple, exponent: int) -> None:
    scale, *rest = grid
    factor = np.float32(2.0**exponent)
    large = np.where(np.abs(x) < 1e-10, np.float32(0), x)  # keep clear of subnormals, which lose bits
    np.testing.assert_array_equal(
        fake_quantize(large * factor, scale * factor, *rest), fake_quantize(large, *grid) * factor
    )


@given(TENSORS, grids())
def test_order_is_kept(x: np.ndarray, grid: tuple) -> None:
    ordered = np.sort(x.reshape(-1))
    assert (np.diff(fake_quantize(ordered, *grid)) >= 0).all()


@given(TENSORS, grids())
def test_error_inside_the_range_is_at_most_half_a_step(x: np.ndarray, grid: tuple) -> None:
    inside = in_range_mask(x, *grid)
    error = np.abs(fake_quantize(x, *grid).astype(np.float64) - x)[inside]
    # Quotient and product are rounded once each: a relative 2^-24 of the value on top of half a step.
    assert (error <= float(grid[0][0]) / 2 + np.abs(x[inside]) * 2.0**-23).all()


@given(TENSORS, st.integers(-10, 10), st.integers(2, 15))
def test_error_never_rises_with_bits_at_a_fixed_threshold(x: np.ndarray, exponent: int, bits: int) -> None:
    def errors(bits: int) -> np.ndarray:
        half = 1 << (bits - 1)
        scale = np.array([2.0**exponent / half], np.float32)
        return np.abs(fake_quantize(x, scale, np.zeros(1, np.int32), -half, half - 1).astype(np.float64) - x)

    assert (errors(bits + 1) <= errors(bits)).all()


@given(TENSORS, grids(), st.floats(0.25, 4.0), st.data())
def test_channels_are_independent(x: np.ndarray, grid: tuple, p: float, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, x.ndim - 1))
    scale, zero_point, qmin, qmax = grid
    n = x.shape[axis]
    scales = (scale * np.linspace(1, 2, n, dtype=np.float32)).astype(np.float32)
    zeros = np.resize(np.array([zero_point[0], qmin, qmax], np.int32), n)
    whole = fake_quantize(x, scales, zeros, qmin, qmax, axis=axis)
    errors = tensor_error(x, scales, zeros, qmin, qmax, p=p, axis=axis)
    for c in range(n):
        one = np.ascontiguousarray(x.take(c, axis))
        alone = fake_quantize(one, scales[c : c + 1], zeros[c : c + 1], qmin, qmax)
        np.testing.assert_array_equal(whole.take(c, axis), alone)
        expected = (np.abs(alone.astype(np.float64) - one) ** p).sum()
        np.testing.assert_allclose(errors[c], expected, rtol=1e-12)


@given(TENSORS, SCALES, hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-200, 200, width=32)))
def test_codebook_gives_the_nearest_level(x: np.ndarray, scale: float, levels: np.ndarray) -> None:
    table, steps = np.sort(levels), np.array([scale], np.float32)
    values = lut_fake_quantize(x, steps, table)
    distances = np.abs(x.astype(np.float64)[..., None] - table.astype(np.float64) * float(steps[0]))
    # The quotient, the meeting points of levels and the product are float32.
    slack = (np.abs(x).astype(np.float64) + np.abs(table).max() * float(steps[0])) * 2.0**-22
    assert (np.abs(values.astype(np.float64) - x) <= distances.min(-1) + slack).all()
    np.testing.assert_array_equal(lut_fake_quantize(values, steps, table), values)


@given(hnp.arrays(np.int8, hnp.array_shapes(max_dims=3, max_side=9), elements=st.integers(-8, 7)))
def test_packing_is_reversible(codes: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack_int4(pack_int4(codes), codes.shape), codes)
