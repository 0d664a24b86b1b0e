"""What must hold of a threshold search on histograms, whatever computes it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detent.kernels.histogram_candidates import Sides
from detent.kernels.histogram_search import HistogramSearch, kernel_errors, search_histogram
from detent.records.grid import Grid
from tests.histograms import data_sets, fake_quantize, histogram

DATA = data_sets()
HISTOGRAMS = {name: histogram(x) for name, x in DATA.items()}
METRICS = {"mse": 2.0, "mae": 1.0, "lp": 3.0}


def _search(name: str, bits: int, grid: Any = "symmetric", metric: Any = "mse", **options: Any) -> HistogramSearch:
    return search_histogram(**HISTOGRAMS[name], bits=[bits], grid=grid, metric=metric, **options)[0]


def _levels(bits: int, signed: bool) -> tuple[int, int]:
    half = 1 << (bits - signed)
    return (half if signed else 0), half - 1


def _true_error(x: np.ndarray, threshold: float, bits: int, signed: bool, p: float) -> float:
    step = threshold / (1 << (bits - signed))
    return float(np.mean(np.abs(fake_quantize(x, step, *_levels(bits, signed)) - x) ** p))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_estimated_error_is_that_of_the_data(name: str, metric: Any, bits: int) -> None:
    p = METRICS[metric]
    found = _search(name, bits, metric=metric, p=p)
    assert found.thresholds is not None
    # 20 000 samples on 256 levels: the places of the samples inside their bins leave about a percent.
    for index in {found.best, len(found.errors) // 2, len(found.errors) - 1}:
        true = _true_error(DATA[name], float(found.thresholds[index]), bits, found.signed, p)
        assert found.errors[index] == pytest.approx(true, rel=0.03, abs=1e-9)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", DATA)
def test_symmetric_search_finds_the_optimum_of_the_data(name: str, bits: int) -> None:
    found = _search(name, bits)
    x = DATA[name]
    absmax = float(np.abs(x).max())
    brute = min(_true_error(x, t, bits, found.signed, 2.0) for t in np.linspace(0.02, 4.0, 200) * absmax)
    assert _true_error(x, found.threshold, bits, found.signed, 2.0) <= 1.01 * brute


def test_every_bin_edge_above_five_percent_is_a_candidate() -> None:
    found = _search("gaussian", 8)
    assert found.thresholds is not None
    width = HISTOGRAMS["gaussian"]["width"]
    absmax = float(np.abs(DATA["gaussian"]).max())
    edges = np.arange(math.ceil(0.05 * absmax / width), math.floor(absmax / width) + 1) * width
    assert np.isin(edges, found.thresholds).all()
    assert absmax in found.thresholds
    assert len(found.errors) == len(found.thresholds)
    assert found.best == int(found.errors.argmin())
    assert np.all(np.diff(found.thresholds) > 0)
    assert np.array_equal(found.thresholds, found.thresholds.astype(np.float32))


@pytest.mark.parametrize("name", DATA)
def test_power_of_two_candidates(name: str) -> None:
    found = _search(name, 8, "power_of_two")
    assert found.thresholds is not None
    assert np.all(np.frexp(found.thresholds)[0] == 0.5)
    absmax = float(np.abs(DATA[name]).max())
    assert found.thresholds[-1] / 2 >= absmax > found.thresholds[-1] / 4
    assert len(found.thresholds) >= 18


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("name", DATA)
def test_uniform_search_reaches_the_global_optimum(name: str, bits: int) -> None:
    """Within 0.5 % of every step on a dense grid combined with every position of zero."""
    found = _search(name, bits, "uniform")
    x, width = DATA[name], HISTOGRAMS[name]["width"]
    levels = (1 << bits) - 1
    span = (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / levels
    steps = np.geomspace(span / 200, span * (1 + 8 / levels), 800)
    splits = range(levels + 1) if bits < 8 else range(0, levels + 1, 3)
    errors = kernel_errors(_sides(name), "mse", 2.0)
    brute = min(errors.fixed_levels(steps / width, levels - m, m).min() for m in splits) * width**2 / len(x)
    assert found.error <= 1.005 * brute


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("name", DATA)
def test_uniform_search_beats_brute_force_on_the_data(name: str, bits: int) -> None:
    found = _search(name, bits, "uniform")
    x = DATA[name][:4000]
    lowers, uppers = np.meshgrid(min(x.min(), 0) * np.linspace(0, 1, 25), max(x.max(), 0) * np.linspace(0.04, 1, 25))
    pairs = [(low, high) for low, high in zip(lowers.ravel(), uppers.ravel(), strict=True) if low < high]
    brute = min(_uniform_error(x, low, high, bits) for low, high in pairs)
    full = histogram(x)
    ours = search_histogram(**full, bits=[bits], grid="uniform", metric="mse")[0]
    assert _uniform_error(x, ours.lower, ours.upper, bits) <= 1.005 * brute
    assert found.error == pytest.approx(_uniform_error(DATA[name], found.lower, found.upper, bits), rel=0.03)


def _uniform_error(x: np.ndarray, lower: float, upper: float, bits: int) -> float:
    grid = Grid(kind="uniform", bits=bits, signed=False, lower=np.float32([lower]), upper=np.float32([upper]))
    scale, zero_point = float(grid.scale[0]), int(grid.zero_point[0])
    return float(np.mean((fake_quantize(x, scale, zero_point - grid.qmin, grid.qmax - zero_point) - x) ** 2))


def _sides(name: str) -> Sides:
    h = HISTOGRAMS[name]
    counts, split = h["counts"].astype(np.float64), -h["first_bin"]
    if h["zeros"]:
        counts[split] -= h["zeros"]
    positive = np.concatenate([np.zeros(max(-split, 0)), counts[max(split, 0) :]])
    negative = np.ascontiguousarray(counts[: max(split, 0)][::-1])
    ends = [max(h["maximum"], 0.0) / h["width"], max(-h["minimum"], 0.0) / h["width"]]
    ends = [min(end, float(len(side))) for end, side in zip(ends, (positive, negative), strict=True)]
    return Sides(positive, ends[0], negative, ends[1], float(h["zeros"]), 0.5)


@pytest.mark.parametrize("grid", ["power_of_two", "symmetric", "uniform"])
@pytest.mark.parametrize("metric", ["mse", "mae", "lp", "kl", "noclipping"])
@pytest.mark.parametrize("name", ["silu", "relu", "heavy"])
def test_scaling_by_a_power_of_two_scales_exactly(name: str, metric: Any, grid: Any) -> None:
    plain = histogram(DATA[name], 9)
    scaled = histogram(DATA[name] * 32.0, 9)
    power = {"mse": 2, "noclipping": 2, "mae": 1, "lp": 2.5, "kl": 0}[metric]
    for a, b in zip(
        search_histogram(**plain, bits=[8, 3], grid=grid, metric=metric, p=2.5),
        search_histogram(**scaled, bits=[8, 3], grid=grid, metric=metric, p=2.5, min_threshold=2.0**-11),
        strict=True,
    ):
        for field in ("thresholds", "lowers", "uppers"):
            if getattr(a, field) is not None:
                np.testing.assert_array_equal(getattr(a, field) * 32, getattr(b, field))
        np.testing.assert_allclose(a.errors * 32.0**power, b.errors, rtol=1e-14)
        assert a.best == b.best


counts = st.lists(st.integers(0, 1000), min_size=1, max_size=60).filter(any)


def _from_counts(values: list[int], first_bin: int) -> dict[str, Any]:
    occupied = np.flatnonzero(values)
    return {
        "counts": np.array(values, np.int64),
        "first_bin": first_bin,
        "width": 2.0**-4,
        "minimum": float((first_bin + occupied[0]) * 2.0**-4),
        "maximum": float((first_bin + occupied[-1] + 0.75) * 2.0**-4),
    }


@settings(max_examples=60, deadline=None)
@given(values=counts, first_bin=st.integers(-50, 10))
def test_error_never_rises_with_bits(values: list[int], first_bin: int) -> None:
    """At the same threshold every level of n bits is a level of n + 1 bits."""
    arguments = _from_counts(values, first_bin)
    for metric in ("mse", "mae"):
        widths = search_histogram(**arguments, bits=[2, 3, 4, 5, 6], grid="power_of_two", metric=metric)
        for coarse, fine in itertools.pairwise(widths):
            # Steps below one bin are charged the error of uniform data, exact only for whole steps per bin.
            assert np.all(fine.errors <= coarse.errors * 1.35 + 1e-12)
            assert fine.error <= coarse.error * 1.35 + 1e-12


@settings(max_examples=60, deadline=None)
@given(values=counts, first_bin=st.integers(-50, 0), zeros=st.integers(1, 10**6))
def test_zeros_cost_nothing(values: list[int], first_bin: int, zeros: int) -> None:
    plain = _from_counts(values + [0] * max(0, 1 - first_bin - len(values)), first_bin)
    more = {**plain, "counts": plain["counts"].copy(), "zeros": zeros}
    more["counts"][-first_bin] += zeros
    more["minimum"], more["maximum"] = min(plain["minimum"], 0.0), max(plain["maximum"], 0.0)
    ratio = plain["counts"].sum() / more["counts"].sum()
    for metric in ("mse", "mae", "lp"):
        a = search_histogram(**plain, bits=[4], grid="power_of_two", metric=metric, p=2.5)[0]
        b = search_histogram(**more, bits=[4], grid="power_of_two", metric=metric, p=2.5)[0]
        np.testing.assert_array_equal(a.thresholds, b.thresholds)
        np.testing.assert_allclose(a.errors * ratio, b.errors, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(values=counts, first_bin=st.integers(-60, 10), factor=st.sampled_from([2, 3, 1000]))
def test_only_proportions_of_counts_matter(values: list[int], first_bin: int, factor: int) -> None:
    arguments = _from_counts(values, first_bin)
    for metric in ("mse", "kl", "hmse"):
        a = search_histogram(**arguments, bits=[4], grid="symmetric", metric=metric)[0]
        arguments_more = {**arguments, "counts": arguments["counts"].astype(np.float64) * factor}
        b = search_histogram(**arguments_more, bits=[4], grid="symmetric", metric=metric)[0]
        np.testing.assert_allclose(a.errors, b.errors, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(values=counts, first_bin=st.integers(-60, -1))
def test_mirrored_data_have_mirrored_grids(values: list[int], first_bin: int) -> None:
    arguments = _from_counts(values, first_bin)
    mirrored = {
        **arguments,
        "counts": arguments["counts"][::-1].copy(),
        "first_bin": -first_bin - len(values),
        "minimum": -arguments["maximum"],
        "maximum": -arguments["minimum"],
    }
    for metric in ("mse", "mae", "kl"):
        options: dict[str, Any] = {"bits": [4], "metric": metric, "signed": True}
        a, b = (search_histogram(**h, **options, grid="symmetric", narrow_range=True)[0] for h in (arguments, mirrored))
        np.testing.assert_array_equal(a.thresholds, b.thresholds)
        np.testing.assert_array_equal(a.errors, b.errors)
        c, d = (search_histogram(**h, **options, grid="uniform")[0] for h in (arguments, mirrored))
        assert c.error == pytest.approx(d.error, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("name", DATA)
def test_kullback_leibler_keeps_the_bulk_and_clips_what_is_rare(name: str) -> None:
    x = DATA[name]
    absmax = float(np.abs(x).max())
    # Few values are clipped. The squared error stays near the least one unless a few values far out decide that.
    for bits, clipped, factor in ((8, 0.004, 8.0), (4, 0.06, 6.0)):
        for grid in ("symmetric", "power_of_two"):
            found = _search(name, bits, grid, "kl")
            least = _search(name, bits, grid, "mse").error
            assert np.mean(np.abs(x) > found.threshold) <= clipped, (bits, grid)
            assert np.mean(np.abs(x) > found.threshold / 4) > 0, (bits, grid)
            error = _true_error(x, found.threshold, bits, found.signed, 2.0)
            assert error <= factor * least + 1e-9 * absmax**2 or name in ("outlier", "sharp_relu")
    assert np.all(_search(name, 8, "symmetric", "kl").errors >= -1e-12)


@pytest.mark.parametrize("grid", ["symmetric", "power_of_two", "uniform"])
@pytest.mark.parametrize("narrow_range", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_noclipping_clips_nothing(name: str, grid: Any, narrow_range: bool) -> None:
    signed_symmetric = grid != "uniform" and HISTOGRAMS[name]["minimum"] < 0
    found = _search(name, 4, grid, "noclipping", narrow_range=narrow_range and signed_symmetric)
    x = DATA[name]
    if grid == "uniform":
        assert (found.lower, found.upper) == (min(x.min(), 0.0), max(x.max(), 0.0))
    elif grid == "power_of_two":
        assert found.threshold >= np.abs(x).max() > found.threshold / 2
    else:
        negative, positive = _levels(4, found.signed)
        step = found.threshold / (1 << (4 - found.signed))
        assert positive * step >= x.max()
        assert (negative - (narrow_range and signed_symmetric)) * step >= -x.min()
        smaller = (
            float(np.nextafter(np.float32(found.threshold), np.float32(0))) * (1 - 1e-6) / (1 << (4 - found.signed))
        )
        assert positive * smaller < x.max() or (negative - (narrow_range and signed_symmetric)) * smaller < -x.min()


def test_power_one_and_two_are_mae_and_mse() -> None:
    for grid in ("power_of_two", "symmetric", "uniform"):
        for p, metric in ((1.0, "mae"), (2.0, "mse")):
            a, b = _search("silu", 4, grid, "lp", p=p), _search("silu", 4, grid, metric)
            np.testing.assert_array_equal(a.errors, b.errors)


@pytest.mark.parametrize("p", [1.0001, 1.9999, 2.0001, 3.0001])
def test_powers_meet_their_neighbours(p: float) -> None:
    near = _search("silu", 4, "symmetric", "lp", p=p).errors
    exact = _search("silu", 4, "symmetric", "lp", p=float(round(p))).errors
    np.testing.assert_allclose(near, exact, rtol=5e-3)


def test_sign_follows_the_data_after_outlier_removal() -> None:
    x = np.append(np.abs(DATA["gaussian"]), np.float32(-6.0))
    arguments = histogram(x)
    assert search_histogram(**arguments, bits=[8], grid="symmetric", metric="mse")[0].signed
    cleaned = search_histogram(**arguments, bits=[8], grid="symmetric", metric="mse", z_threshold=5.0)[0]
    assert not cleaned.signed
    for signed in (True, False):
        found = search_histogram(**arguments, bits=[8], grid="symmetric", metric="mse", signed=signed)[0]
        assert found.signed is signed


def test_outlier_removal_forgets_the_outlier() -> None:
    x = DATA["outlier"]
    without = histogram(x[:-1])
    far = _search("outlier", 8, "symmetric", "noclipping").threshold
    assert far >= 60
    near = _search("outlier", 8, "symmetric", "noclipping", z_threshold=9.0)
    width = HISTOGRAMS["outlier"]["width"]
    assert near.threshold <= max(without["maximum"], -without["minimum"]) * (128 / 127) + 2 * width
    given = _search("outlier", 8, "symmetric", "mse", z_threshold=9.0, mean=float(x.mean()), std=float(x.std()))
    computed = _search("outlier", 8, "symmetric", "mse", z_threshold=9.0)
    assert given.threshold == computed.threshold
    infinite = _search("outlier", 8, "symmetric", "mse", z_threshold=1e9)
    assert infinite.threshold == _search("outlier", 8, "symmetric", "mse").threshold


def test_outlier_removal_never_removes_everything() -> None:
    for name in DATA:
        found = _search(name, 8, "symmetric", "mse", z_threshold=1e-9)
        assert found.threshold > 0
        assert np.all(np.isfinite(found.errors))


@pytest.mark.parametrize("metric", ["noclipping", "mse", "mae", "lp", "kl", "hmse"])
@pytest.mark.parametrize("grid", ["power_of_two", "symmetric", "uniform"])
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 5.03, -0.3, 1e-30, 1.6e38, -1.6e38, 1.0])
def test_constant_data_have_a_valid_grid(value: float, grid: Any, metric: Any) -> None:
    value = float(np.float32(value))
    arguments = histogram(np.full(10, value))
    for bits in (8, 2):
        found = search_histogram(**arguments, bits=[bits], grid=grid, metric=metric, p=2.5)[0]
        assert np.all(np.isfinite(found.errors))
        record = (
            Grid(kind="uniform", bits=bits, signed=found.signed, lower=[found.lower], upper=[found.upper])
            if grid == "uniform"
            else Grid(kind=grid, bits=bits, signed=found.signed, threshold=[found.threshold])
        )
        assert np.isfinite(record.scale).all()
        # Below 2^-16 everything may become zero.
        level = fake_quantize(
            np.array([value]),
            float(record.scale[0]),
            *(int(record.zero_point[0]) - record.qmin, record.qmax - int(record.zero_point[0])),
        )
        if metric != "kl":
            assert abs(level[0] - value) <= max(abs(value) * 0.34, 2.0**-16)


def test_all_zero_data_take_the_least_threshold() -> None:
    found = search_histogram(
        np.array([7]), 0, 2.0**-20, minimum=0.0, maximum=0.0, zeros=7, bits=[8], grid="symmetric", metric="mse"
    )[0]
    assert found.threshold == 2.0**-16
    assert found.error == 0.0
    assert not found.signed


def test_unsigned_grid_on_negative_data_clips_to_zero() -> None:
    found = _search("negative", 8, "symmetric", "mse", signed=False)
    assert found.error == pytest.approx(float(np.mean(DATA["negative"] ** 2)), rel=1e-3)
    assert found.threshold == 2.0**-16


def test_weights_count() -> None:
    """Weighted counts move the threshold to where the weight is."""
    arguments = dict(HISTOGRAMS["gaussian"])
    centers = np.abs((np.arange(len(arguments["counts"])) + arguments["first_bin"] + 0.5) * arguments["width"])
    plain = search_histogram(**arguments, bits=[4], grid="symmetric", metric="mse")[0]
    for weight, larger in ((centers**4, True), (np.exp(-3 * centers), False)):
        weighted = {**arguments, "counts": arguments["counts"] * weight}
        found = search_histogram(**weighted, bits=[4], grid="symmetric", metric="hmse")[0]
        assert (found.threshold > plain.threshold) is larger


def test_other_kinds_have_no_such_limit() -> None:
    found = _search("gaussian", 8, "uniform")
    with pytest.raises(AttributeError, match="threshold"):
        _ = found.threshold
    with pytest.raises(AttributeError, match="lower"):
        _ = _search("gaussian", 8).lower
