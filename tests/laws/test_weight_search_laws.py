"""What any weight search must satisfy, whatever its algorithm."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from detent.kernels.weight_search import search_weights

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
