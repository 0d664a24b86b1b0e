"""What any weight search must satisfy, whatever its algorithm."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detent.kernels.error import tensor_error
from detent.kernels.weight_search import WeightSearch, search_weights
from detent.records.grid import Grid

Array = npt.NDArray[np.float32]


def real_error(row: Array, threshold: float, bits: int, h: Array | None, *, narrow: bool) -> float:
    """Summed squared error of the symmetric grid, in float64 without float32 rounding."""
    x = row.astype(np.float64)
    steps = 1 << (bits - 1)
    step = float(threshold) / steps
    codes = np.clip(np.rint(x / step), narrow - steps, steps - 1)
    return float(((1.0 if h is None else h.astype(np.float64)) * (x - codes * step) ** 2).sum())


def least_error(row: Array, bits: int, h: Array | None, *, narrow: bool, min_threshold: float = 2.0**-16) -> float:
    """The global optimum over all real thresholds, by sorting every breakpoint |x| / (k - 1/2).

    Coming from large scales, each breakpoint passed adds h|x| to sum(hkx) and h(2k - 1) to sum(hk^2); the error of the
    piece is at best sum(hx^2) - sum(hkx)^2 / sum(hk^2).
    """
    x = np.abs(row.astype(np.float64))
    weight = np.ones_like(x) if h is None else h.astype(np.float64)
    steps = 1 << (bits - 1)
    k = np.arange(1, steps + 1)
    reachable = (k <= np.where(row < 0, steps - narrow, steps - 1)[:, None]) & (x > 0)[:, None]
    breakpoints = (x[:, None] / (k - 0.5))[reachable]
    order = np.argsort(-breakpoints, kind="stable")
    cross = np.cumsum(np.broadcast_to((weight * x)[:, None], reachable.shape)[reachable][order])
    squares = np.cumsum((weight[:, None] * (2 * k - 1))[reachable][order])
    some = squares > 0
    scales = cross[some] / squares[some]
    gains = np.where(scales * steps >= min_threshold, cross[some] ** 2 / squares[some], -1.0)
    thresholds = [min_threshold, *(scales[np.argsort(-gains, kind="stable")[:5]] * steps)]
    return min(real_error(row, t, bits, h, narrow=narrow) for t in thresholds if t >= min_threshold)


def rows_of(kind: str, size: int, rng: np.random.Generator) -> Array:
    """Random and adversarial channels."""
    normal = rng.standard_normal(size)
    made = {
        "gaussian": lambda: normal,
        "heavy_tailed": lambda: rng.standard_t(1, size),
        "one_outlier": lambda: np.concatenate([normal[1:], [300.0]]),
        "lattice": lambda: rng.integers(-7, 8, size) * 0.125,
        "noisy_lattice": lambda: rng.integers(-100, 101, size) * 0.013 + normal * 1e-4,
        "half_steps": lambda: (rng.integers(-5, 6, size) + 0.5) * 0.3,
        "all_equal": lambda: np.full(size, 0.37),
        "all_equal_negative": lambda: np.full(size, -0.37),
        "positive": lambda: np.abs(normal),
        "few_values": lambda: rng.choice([-1.0, 0.0, 1.0, 0.5], size),
        "mostly_zero": lambda: np.where(rng.random(size) < 0.9, 0.0, normal),
        "tiny": lambda: normal * 1e-6,
        "below_floor": lambda: normal * 1e-12,
        "subnormal": lambda: normal * 1e-40,
        "huge": lambda: normal * 1e37,
        "wide": lambda: np.exp(normal * 10),
    }[kind]()
    return made.astype(np.float32)


KINDS = [
    "gaussian",
    "heavy_tailed",
    "one_outlier",
    "lattice",
    "noisy_lattice",
    "half_steps",
    "all_equal",
    "all_equal_negative",
    "positive",
    "few_values",
    "mostly_zero",
    "tiny",
    "below_floor",
    "subnormal",
    "huge",
    "wide",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True], ids=["mse", "hmse"])
@pytest.mark.parametrize("narrow", [False, True], ids=["full", "narrow"])
def test_exact_search_reaches_the_global_optimum(kind: str, weighted: bool, narrow: bool) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    for size in (1, 2, 9, 27, 200):
        row = rows_of(kind, size, rng)
        h = None
        if weighted:
            h = np.where(rng.random(size) < 0.2, 0, rng.random(size) ** 4).astype(np.float32)
        bits = [2, 3, 4, 5, 8]
        found = search_weights(
            row[None],
            bits=bits,
            grid="symmetric",
            metric="hmse" if weighted else "mse",
            weights=None if h is None else h[None],
            narrow_range=narrow,
        )
        energy = float(((1.0 if h is None else h.astype(np.float64)) * row.astype(np.float64) ** 2).sum())
        for search in found:
            assert search.exact
            assert search.thresholds is not None
            error = real_error(row, search.thresholds[0], search.bits, h, narrow=narrow)
            least = least_error(row, search.bits, h, narrow=narrow)
            # 2^-46 of the energy is what rounding the threshold to float32 may cost.
            assert error <= least * (1 + 1e-9) + energy * 2.0**-46, (size, search.bits)


def grid_of(search: WeightSearch, kind: str, *, narrow: bool = False) -> Grid:
    limits = {"lower": search.lowers, "upper": search.uppers} if kind == "uniform" else {"threshold": search.thresholds}
    return Grid.from_dict(
        {"kind": kind, "bits": search.bits, "signed": True, "axis": 0, "narrow_range": narrow} | limits
    )


def errors_of(w: Array, grid: Grid, p: float = 2.0, h: Array | None = None) -> npt.NDArray[np.float64]:
    """Mean errors per channel of a grid, from the error kernel."""
    sums = tensor_error(w, grid.scale, grid.zero_point, grid.qmin, grid.qmax, p=p, weights=h, axis=0)
    return sums / (w.size / len(w))


def channels(size: int, seed: int = 0) -> Array:
    """One channel of every kind that is not degenerate."""
    rng = np.random.default_rng(seed)
    kinds = ("gaussian", "heavy_tailed", "one_outlier", "noisy_lattice", "positive", "mostly_zero", "few_values")
    return np.stack([rows_of(kind, size, rng) for kind in kinds])


@pytest.mark.parametrize("kind", ["power_of_two", "symmetric", "uniform"])
@pytest.mark.parametrize(("metric", "p"), [("noclipping", 2.0), ("mse", 2.0), ("mae", 1.0), ("lp", 2.5), ("hmse", 2.0)])
def test_the_error_is_that_of_the_grid(kind: Any, metric: Any, p: float) -> None:
    w = channels(150)
    h = np.random.default_rng(1).random(w.shape, np.float32) if metric == "hmse" else None
    for search in search_weights(w, bits=[8, 4, 2], grid=kind, metric=metric, p=p, weights=h):
        np.testing.assert_allclose(search.errors, errors_of(w, grid_of(search, kind), p, h), rtol=1e-9, atol=1e-30)


def test_exact_is_never_worse_than_dense_and_dense_is_close() -> None:
    w = np.concatenate([channels(150), channels(2000, seed=1)[:, :150], channels(27, seed=2).repeat(6, 1)[:, :150]])
    for bits in (8, 4, 3, 2):
        exact, dense = (
            search_weights(w, bits=[bits], grid="symmetric", metric="mse", method=method)[0]
            for method in ("exact", "grid")
        )
        assert exact.exact
        assert not dense.exact
        # Not exactly: the definition rounds values to float32, the optimum is of real numbers.
        assert (exact.errors <= dense.errors * (1 + 1e-5) + 1e-12).all()
        assert np.median(dense.errors / np.maximum(exact.errors, 1e-12)) < 1.02


@pytest.mark.parametrize(("metric", "p"), [("mse", 2.0), ("mae", 1.0), ("lp", 3.0)])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_dense_search_is_close_to_brute_force(metric: Any, p: float, bits: int) -> None:
    w = channels(300, seed=3)[[0, 1, 2, 4]]
    (search,) = search_weights(w, bits=[bits], grid="symmetric", metric=metric, p=p, method="grid")
    for row, error in zip(w, search.errors, strict=True):
        thresholds = (np.abs(row).max() * np.geomspace(2**-10, 1.2, 4000)).astype(np.float32)
        grid = Grid(kind="symmetric", bits=bits, signed=True, threshold=thresholds, axis=0)
        least = errors_of(np.broadcast_to(row, (4000, 300)).copy(), grid, p).min()
        assert error <= least * 1.01


@pytest.mark.parametrize(("metric", "p"), [("mse", 2.0), ("mae", 1.0)])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("shape", ["gaussian", "laplace", "silu", "bimodal", "heavy_tailed", "outlier", "one_sided"])
def test_uniform_search_reaches_a_brute_force_grid(metric: Any, p: float, bits: int, shape: str) -> None:
    rng = np.random.default_rng(bits)
    normal = rng.standard_normal(400)
    row = {
        "gaussian": normal,
        "laplace": rng.laplace(size=400),
        "silu": 2 * normal / (1 + np.exp(-2 * normal)),
        "bimodal": np.where(rng.random(400) < 0.5, -1 + 0.1 * normal, 3 + 0.2 * normal),
        "heavy_tailed": rng.standard_t(2, 400),
        "outlier": np.append(normal[1:], 60.0),
        "one_sided": np.abs(normal) + 0.5,
    }[shape].astype(np.float32)
    (search,) = search_weights(row[None], bits=[bits], grid="uniform", metric=metric, p=p)
    shares = np.geomspace(0.02, 1.05, 60)
    lowers, uppers = (side.ravel() for side in np.meshgrid(min(row.min(), 0) * shares, max(row.max(), 0) * shares))
    grid = Grid(kind="uniform", bits=bits, signed=True, lower=lowers, upper=uppers, axis=0)
    least = errors_of(np.broadcast_to(row, (3600, 400)).copy(), grid, p).min()
    assert search.errors[0] <= least * 1.005


@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_no_other_power_of_two_is_better(metric: Any) -> None:
    w = channels(100, seed=4)
    p = 1.0 if metric == "mae" else 2.0
    for search in search_weights(w, bits=[8, 4, 2], grid="power_of_two", metric=metric):
        assert search.exact
        for exponent in range(-16, 14):
            threshold = np.full(len(w), 2.0**exponent, np.float32)
            grid = Grid(kind="power_of_two", bits=search.bits, signed=True, threshold=threshold, axis=0)
            assert (search.errors <= errors_of(w, grid, p) * (1 + 1e-12)).all()


def test_no_clipping_puts_the_extremes_on_the_last_codes() -> None:
    w = channels(60, seed=5)
    for narrow in (False, True):
        for search in search_weights(w, bits=[8, 3, 2], grid="symmetric", metric="noclipping", narrow_range=narrow):
            grid = grid_of(search, "symmetric", narrow=narrow)
            low, high = grid.limits
            assert (low <= w.min(1) * (1 - 1e-6)).all()
            assert (high >= w.max(1) * (1 - 1e-6)).all()
            tight = np.isclose(low, w.min(1), rtol=1e-6) | np.isclose(high, w.max(1), rtol=1e-6)
            assert tight.all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 70),
    shift=st.integers(-20, 40),
    metric=st.sampled_from(["mse", "mae", "noclipping"]),
    kind=st.sampled_from(["power_of_two", "symmetric", "uniform"]),
)
def test_powers_of_two_scale_through(seed: int, size: int, shift: int, metric: Any, kind: Any) -> None:
    w = np.random.default_rng(seed).laplace(size=(2, size)).astype(np.float32)
    options: dict[str, Any] = {"bits": [8, 3], "grid": kind, "metric": metric}
    plain = search_weights(w, min_threshold=2.0**-16, **options)
    scaled = search_weights(np.ldexp(w, shift), min_threshold=2.0 ** (shift - 16), **options)
    power = 1 if metric == "mae" else 2
    for a, b in zip(plain, scaled, strict=True):
        for name in ("thresholds", "lowers", "uppers"):
            if getattr(a, name) is not None:
                np.testing.assert_array_equal(np.ldexp(getattr(a, name), shift), getattr(b, name))
        np.testing.assert_array_equal(np.ldexp(a.errors, power * shift), b.errors)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 200), narrow=st.booleans())
def test_more_bits_never_lose(seed: int, size: int, narrow: bool) -> None:
    w = np.random.default_rng(seed).standard_t(3, size=(1, size)).astype(np.float32)
    found = search_weights(w, bits=range(2, 9), grid="symmetric", metric="mse", narrow_range=narrow)
    errors = [search.errors[0] for search in found]
    floor = float(np.square(w.astype(np.float64)).mean()) * 1e-12
    assert all(more <= fewer * (1 + 1e-5) + floor for fewer, more in itertools.pairwise(errors))


def test_narrow_ranges_do_not_know_signs() -> None:
    w = channels(100, seed=6)
    options: dict[str, Any] = {"bits": [8, 4, 2], "grid": "symmetric", "metric": "mse", "narrow_range": True}
    for a, b in zip(search_weights(w, **options), search_weights(-w, **options), strict=True):
        np.testing.assert_allclose(a.errors, b.errors, rtol=1e-9)


@pytest.mark.parametrize("kind", ["power_of_two", "symmetric", "uniform"])
@pytest.mark.parametrize("metric", ["noclipping", "mse", "mae", "kl"])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-40])
def test_negligible_channels_get_the_least_threshold(kind: Any, metric: Any, scale: float) -> None:
    w = (np.random.default_rng(7).standard_normal((2, 50)) * scale).astype(np.float32)
    for search in search_weights(w, bits=[8, 2], grid=kind, metric=metric):
        grid = grid_of(search, kind)
        assert (grid.scale > 0).all()
        assert search.thresholds is None or (search.thresholds == np.float32(2.0**-16)).all()
        assert metric == "kl" or (search.errors <= scale).all()


def test_divergence_keeps_most_of_the_channel() -> None:
    w = np.random.default_rng(8).laplace(size=(3, 1000)).astype(np.float32)
    for kind in ("power_of_two", "symmetric", "uniform"):
        wide, narrow = search_weights(w, bits=[8, 2], grid=kind, metric="kl")
        for search in (wide, narrow):
            low, high = grid_of(search, kind).limits
            inside = ((w >= low[:, None]) & (w <= high[:, None])).mean(1)
            assert (inside > (0.99 if search is wide else 0.4)).all()
