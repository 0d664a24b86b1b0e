"""The statistics kernels against their twin, bit for bit, on every instruction set and thread count."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from detent import _core
from detent.kernels import statistics
from detent.kernels.reference import statistics as twin
from tests.cases import FLOATS, GAPS, LAYOUTS, NONFINITE, SHAPES, SIZES, all_floats, awkward, samples
from tests.fanout import assert_parity, assert_same_bits

Array = Any
LADEN = {name: shape for name, shape in SHAPES.items() if len(shape) > 0}


def state_of(module: Any, x: Array, channel_axis: int | None = None, counted: int | None = None) -> dict[str, Array]:
    accumulator = module.StatisticsAccumulator(channel_axis)
    accumulator.update(x, counted)
    return accumulator.state()


def check_update(x: Array, channel_axis: int | None = None, counted: int | None = None) -> None:
    expected = state_of(twin, x, channel_axis, counted)
    assert_parity(lambda: state_of(statistics, x, channel_axis, counted), expected)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_one_sample_of_awkward_size(size: int) -> None:
    check_update(awkward((1, size), finite=False))


@pytest.mark.parametrize("size", [1, 5, 16, 127, 129, 300])
def test_many_samples(size: int) -> None:
    check_update(awkward((1000, size), seed=size))


@pytest.mark.parametrize("floats", FLOATS.values(), ids=FLOATS)
def test_awkward_floats(floats: Array) -> None:
    check_update(np.tile(floats, 40).reshape(2, -1))
    for value in floats:
        check_update(np.full((1, 1), value, np.float32))


def test_all_zero_and_constant_tensors() -> None:
    for value in (0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**127), 0.1):
        x = np.full((3, 5000), value, np.float32)
        check_update(x)
        accumulator = statistics.StatisticsAccumulator()
        accumulator.update(x)
        assert accumulator.counts.tolist() == [15000]
        assert accumulator.minimum == accumulator.maximum == np.float32(value)
        assert not np.signbit(np.float32(accumulator.minimum)) or value < 0
        assert accumulator.zeros == (15000 if value == 0 else 0)
        assert accumulator.mean == pytest.approx(np.float32(value), rel=1e-15)
        assert accumulator.std <= 1e-7 * abs(value)


def test_range_that_grows_inside_a_run() -> None:
    x = np.geomspace(1e-40, 1e38, 20000, dtype=np.float32).reshape(4, -1)
    check_update(x)
    check_update(-x)
    check_update(np.ascontiguousarray(x[::-1, ::-1]))


def test_exact_powers_of_two_are_edges_of_bins() -> None:
    x = np.array([[1.0, -1.0, 0.5, -0.5, 2.0**-11, -(2.0**-11)]], np.float32)
    accumulator = statistics.StatisticsAccumulator()
    accumulator.update(x)
    assert accumulator.exponent == 1 - 12
    found = np.flatnonzero(accumulator.counts) + accumulator.first_bin
    assert found.tolist() == [-2048, -1024, -1, 1, 1024, 2048]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", LADEN.values(), ids=LADEN)
def test_channels_in_every_memory_order(shape: tuple[int, ...], layout: Callable[[Array], Array]) -> None:
    x = layout(awkward(shape, finite=False))
    samples_outermost = not x.size or x.shape[0] == 1 or x.strides[0] * x.shape[0] == x.nbytes
    axes = [None, *range(1, x.ndim), -1] if samples_outermost else [0]
    for axis in axes:
        check_update(x, axis)


@pytest.mark.parametrize("channels", [1, 2, 3, 31, 64, 65, 300])
def test_channels_last_rows_cross_runs_and_stretches(channels: int) -> None:
    rows = 140_000 // channels + 3
    x = awkward((1, rows, channels), seed=channels)
    check_update(x, 2)


def test_channel_axis_zero_makes_one_sample() -> None:
    x = awkward((6, 3, 5, 5))
    check_update(x, 0)
    check_update(x, -4)
    accumulator = statistics.StatisticsAccumulator(0)
    accumulator.update(x)
    assert accumulator.samples == 1
    np.testing.assert_array_equal(accumulator.channel_minimum, x.reshape(6, -1).min(axis=1))
    with pytest.raises(ValueError, match="one sample"):
        accumulator.update(x, 2)


def test_only_the_first_samples_count() -> None:
    x = awkward((7, 3, 50, 50), finite=False)
    for counted in (0, 1, 6, 7):
        check_update(x, 1, counted)
        assert_same_bits(state_of(statistics, x, 1, counted), state_of(statistics, x[:counted].copy(), 1))


def test_nonfinite_values_are_counted_apart() -> None:
    x = samples((3, 4, 40, 40))
    x[0, 1, 3, 5:9] = NONFINITE
    x[2, 3] = np.nan
    check_update(x)
    check_update(x, 1)
    check_update(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1)
    accumulator = statistics.StatisticsAccumulator(1)
    accumulator.update(x)
    finite = x[np.isfinite(x)]
    assert accumulator.nonfinite == 1604
    assert accumulator.count == finite.size == accumulator.counts.sum()
    assert (accumulator.minimum, accumulator.maximum) == (finite.min(), finite.max())
    assert accumulator.zeros == np.sum(finite == 0)


def test_derived_figures_equal_the_twins_and_numpys() -> None:
    x = awkward((5, 3, 700), spread=3.0)
    x[np.abs(x) > 1e6] = 1.0
    theirs = twin.StatisticsAccumulator(1)
    theirs.update(x)

    def figures(module: Any) -> dict[str, Any]:
        a = module.StatisticsAccumulator(1)
        a.update(x)
        names = ("samples", "count", "zeros", "nonfinite", "minimum", "maximum", "sum", "sum_of_squares", "mean",
                 "variance", "std", "exponent", "first_bin", "counts", "channel_minimum", "channel_maximum",
                 "channel_mean")  # fmt: skip
        return {name: getattr(a, name) for name in names}

    expected = figures(twin)
    assert_parity(lambda: figures(statistics), expected)
    wide = x.astype(np.float64)
    assert expected["mean"] == pytest.approx(wide.mean(), rel=1e-13)
    assert expected["std"] == pytest.approx(wide.std(), rel=1e-13)
    np.testing.assert_allclose(expected["channel_mean"], wide.mean(axis=(0, 2)), rtol=1e-13)


def test_variance_does_not_cancel() -> None:
    x = (1e6 + np.arange(4096) % 2).astype(np.float32).reshape(1, -1)
    accumulator = statistics.StatisticsAccumulator()
    accumulator.update(x)
    assert accumulator.variance == 0.25
    assert accumulator.std == 0.5


def test_sums_are_rounded_once() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 1)) * 10.0 ** rng.integers(-30, 30, (500, 1))).astype(np.float32)
    accumulator = statistics.StatisticsAccumulator()
    accumulator.update(x)
    assert accumulator.sum == math.fsum(x.ravel().astype(np.float64))
    assert accumulator.sum_of_squares == float(sum(Fraction(float(v)) ** 2 for v in x.ravel()))
    halves = np.array([[2.0**53], [1.0], [2.0**53 + 0.0], [2.0**-100]]).astype(np.float32)
    for terms in (halves[:2], halves[:3], halves[[0, 1, 3]], -halves[[0, 1, 3]]):
        accumulator = statistics.StatisticsAccumulator(-1)
        accumulator.update(np.ascontiguousarray(terms))
        assert accumulator.sum == math.fsum(terms.ravel().astype(np.float64))
        assert accumulator.channel_mean[0] * len(terms) == pytest.approx(accumulator.sum)


def test_exact_sums_round_to_nearest_even() -> None:
    rng = np.random.default_rng(0)
    totals = [0, 1, -1, 1 << 700, -(1 << 700)]
    for bits in (10, 53, 54, 55, 90, 96, 97, 300):
        for shift in (0, 31, 32, 200):
            lead = int(rng.integers(1 << 52, 1 << 53)) << bits
            half = 1 << max(0, bits - 1)
            for rest in (0, half, half - 1, half + 1, 1):
                totals += [(lead + rest) << shift, -((lead + rest) << shift), ((lead | 1 << bits) + rest) << shift]
    digits = np.array(
        [[total >> 32 * i & 0xFFFFFFFF for i in range(21)] + [total >> 672] for total in totals], np.int64
    )
    expected = np.array([total / (1 << 352) for total in totals])
    assert_same_bits(_core.exact_values(digits), expected)
    for digit in (-1, 1 << 32):
        with pytest.raises(ValueError, match="digit 3 of an exact sum is out of range"):
            _core.exact_values(np.array([[0, 0, 0, digit] + [0] * 18], np.int64))


def test_subnormals_count_in_every_mode() -> None:
    torch = pytest.importorskip("torch")
    inputs = [np.full((1, 100), 2.0**-149, np.float32), np.array([[-(2.0**-149), 1e30]], np.float32)]
    expected = [state_of(twin, x) for x in inputs]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        actual = [state_of(statistics, x) for x in inputs]
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(actual, expected)


def test_tensors_in_any_memory_format_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    x = awkward((2, 5, 7, 9))
    last = torch.from_numpy(x).to(memory_format=torch.channels_last)
    check_update(last.numpy(), 1)
    assert_same_bits(state_of(statistics, last, 1), state_of(twin, last.numpy(), 1))
    with pytest.raises(TypeError, match="requires grad"):
        state_of(statistics, torch.ones(2, 2, requires_grad=True))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_channel_range(axis: int, layout: Callable[[Array], Array]) -> None:
    for shape in ((64, 3, 7, 7), (5, 40, 50), (1, 4, 1), (300, 1000, 1)):
        x = layout(awkward(shape))
        assert_parity(lambda x=x: statistics.channel_range(x, axis), twin.channel_range(x, axis))
    other = tuple(d for d in range(3) if d != axis % 3)
    low, high, mean = statistics.channel_range(x, axis)
    np.testing.assert_array_equal(low, x.min(axis=other))
    np.testing.assert_array_equal(high, x.max(axis=other))
    bound = 1e-12 * np.abs(x).mean(axis=other, dtype=np.float64)  # awkward floats cancel
    assert np.all(np.abs(mean - x.mean(axis=other, dtype=np.float64)) <= bound)


def test_channel_range_refuses_what_has_none() -> None:
    with pytest.raises(ValueError, match=r"1 NaN or infinite values in channel 1 of axis 0"):
        statistics.channel_range(np.array([[1, 2], [np.nan, 2]], np.float32), 0)
    with pytest.raises(ValueError, match="holds no values"):
        statistics.channel_range(np.zeros((0, 3), np.float32), 1)
    with pytest.raises(ValueError, match="axis 2 is outside"):
        statistics.channel_range(np.zeros((2, 3), np.float32), 2)
    with pytest.raises(ValueError, match="dtype float32"):
        statistics.channel_range(np.zeros((2, 3)), 0)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_weighted_counts(size: int) -> None:
    x = samples(size)
    weights = np.abs(samples(size, seed=1)) + np.float32(0.1)
    accumulator = statistics.StatisticsAccumulator()
    accumulator.update(x.reshape(1, -1))
    if size == 0:
        bins = (-12, 0, 5)
    else:
        bins = (accumulator.exponent, accumulator.first_bin, len(accumulator.counts))
    expected = twin.weighted_counts(x, weights, *bins)
    assert_parity(lambda: statistics.weighted_counts(x, weights, *bins), expected)
    ones = statistics.weighted_counts(x, np.ones_like(x), *bins)
    if size:
        np.testing.assert_array_equal(ones, accumulator.counts)


def test_weighted_counts_at_both_ends_of_the_floats() -> None:
    for exponent in (-160, 116):
        x = np.ldexp(np.array([-1.0, 0.5, 1.5, 2.9], np.float32), max(exponent, -149)).astype(np.float32)
        first = int(np.floor(np.ldexp(float(x[0]), -exponent)))
        args = (x, np.ones_like(x), exponent, first, 16384)
        assert_parity(lambda args=args: statistics.weighted_counts(*args), twin.weighted_counts(*args))


def test_weighted_counts_refuses_bad_input() -> None:
    x = np.array([0.5, 1.5, 2.5], np.float32)
    one = np.ones_like(x)
    assert statistics.weighted_counts(x, one, 0, 0, 3).tolist() == [1, 1, 1]
    for bad in ((0, 0, 2), (0, 1, 3), (-2, 0, 3)):
        with pytest.raises(ValueError, match="outside the bins"):
            statistics.weighted_counts(x, one, *bad)
    for weight in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="1 of 3 values"):
            statistics.weighted_counts(x, np.array([1, weight, 1], np.float32), 0, 0, 3)
    with pytest.raises(ValueError, match="NaN"):
        statistics.weighted_counts(np.array([np.nan], np.float32), one[:1], 0, 0, 3)
    with pytest.raises(ValueError, match="shape and memory order"):
        statistics.weighted_counts(x, one[:2], 0, 0, 3)
    with pytest.raises(ValueError, match="shape and memory order"):
        statistics.weighted_counts(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32).T, 0, 0, 3)
    with pytest.raises(ValueError, match="exponent must be"):
        statistics.weighted_counts(x, one, 117, 0, 3)
    with pytest.raises(ValueError, match="n_bins must be"):
        statistics.weighted_counts(x, one, 0, 0, 0)
    with pytest.raises(ValueError, match="weights must have dtype float32"):
        statistics.weighted_counts(x, one.astype(np.float64), 0, 0, 3)


@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
def test_views_with_gaps_are_refused(gap: Callable[[Array], Array]) -> None:
    with pytest.raises(ValueError, match="gaps"):
        state_of(statistics, gap(samples((4, 3, 8))))


def test_bad_updates_are_refused_and_change_nothing() -> None:
    x = samples((4, 3, 8))
    accumulator = statistics.StatisticsAccumulator(1)
    accumulator.update(x)
    before = accumulator.state()
    bad: list[tuple[Any, int | None, str]] = [
        (x.astype(np.float64), None, "dtype float32"),
        (x.astype(np.float16), None, "dtype float32"),
        (x, -1, "samples must be in 0..4"),
        (x, 5, "samples must be in 0..4"),
        (samples((4, 5, 8)), None, "5 channels on axis 1, earlier updates had 3"),
        (samples(4), None, "axis 1 is outside"),
        (np.asfortranarray(x), None, "must be outermost in memory"),
        (np.array(1, np.float32), None, "axis of samples"),
    ]
    for array, counted, message in bad:
        with pytest.raises(ValueError, match=message):
            accumulator.update(array, counted)
        assert_same_bits(accumulator.state(), before)
    with pytest.raises(TypeError, match="NumPy array or a CPU tensor"):
        accumulator.update([[1.0]])  # type: ignore[arg-type]


def test_empty_accumulator() -> None:
    empty = statistics.StatisticsAccumulator()
    assert (empty.count, empty.samples, empty.zeros, len(empty.counts), empty.first_bin) == (0, 0, 0, 0, 0)
    assert (empty.minimum, empty.maximum) == (math.inf, -math.inf)
    for name in ("mean", "variance", "std"):
        with pytest.raises(ValueError, match="no finite value"):
            getattr(empty, name)
    with pytest.raises(ValueError, match="do not tell channels apart"):
        _ = empty.channel_mean
    assert_same_bits(empty.state(), twin.StatisticsAccumulator().state())
    channels = statistics.StatisticsAccumulator(1)
    assert_same_bits(channels.state(), twin.StatisticsAccumulator(1).state())
    assert len(channels.channel_mean) == 0


def test_merge_refuses_other_channels() -> None:
    three, five, none = (statistics.StatisticsAccumulator(axis) for axis in (1, 1, None))
    three.update(samples((2, 3)))
    five.update(samples((2, 5)))
    before = three.state()
    with pytest.raises(ValueError, match="3 channels with statistics of 5"):
        three.merge(five)
    with pytest.raises(ValueError, match="different channel axes"):
        three.merge(none)
    assert_same_bits(three.state(), before)


def test_copies_are_independent() -> None:
    first = statistics.StatisticsAccumulator(1)
    first.update(samples((2, 3)))
    before = first.state()
    for duplicate in (first.copy(), copy.copy(first), copy.deepcopy(first)):
        duplicate.update(samples((5, 3), seed=1))
        assert duplicate.samples == 7
    assert_same_bits(first.state(), before)
    first.merge(first)
    assert first.count == 12


def test_states_cannot_be_written_through() -> None:
    accumulator = statistics.StatisticsAccumulator()
    accumulator.update(samples((2, 300)))
    with pytest.raises(ValueError, match="read-only"):
        accumulator.counts[0] = 7


def test_awkward_pool_is_covered() -> None:
    check_update(all_floats().reshape(1, -1))
