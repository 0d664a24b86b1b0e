"""The compiled histogram search against its twin, on every instruction set and thread count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detent.kernels.histogram_candidates import Sides
from detent.kernels.histogram_search import kernel_errors, search_histogram
from detent.kernels.reference import histogram_search as reference
from tests.fanout import on_every_variant
from tests.histograms import data_sets, histogram

METRICS = {"mse": 2.0, "mae": 1.0, "lp": 2.4, "kl": 1.0}
# Look-ups in suffix sums cancel: an error is the difference of numbers of the size of sum |x|^p, each rounded to 2^-53.
# A few hundred levels leave at most CANCELLATION of sum |x|^p as absolute error; the twin's own integrals, over bins
# down to 2^-20 wide, leave TWIN of the result. General powers are fitted (histogram_search.h), within FIT.
CANCELLATION = 2.0**-42
TWIN = 2.0**-28
FIT = 0.02


def _bound(expected: np.ndarray, scale: float, metric: str) -> np.ndarray:
    relative = FIT if metric == "lp" else TWIN
    return relative * expected + CANCELLATION * scale


def _random_sides(seed: int) -> Sides:
    rng = np.random.default_rng(seed)
    sides = []
    for bins in rng.integers(0, [2400, 1500]):
        counts = np.floor(rng.exponential(size=bins) * 300 * np.exp(-np.arange(bins) / 200)).astype(np.float64)
        counts[-1:] = 1.0
        sides.append((counts, float(bins - rng.choice([0.0, 0.25, 1.0])) if bins else 0.0))
    (positive, positive_end), (negative, negative_end) = sides
    return Sides(positive, positive_end, negative, negative_end, float(rng.integers(0, 2000)), 0.5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("levels", [(127, 128), (255, 0), (7, 8), (1, 2), (3, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("seed", range(3))
def test_fixed_levels_agree_with_the_twin(metric: str, levels: tuple[int, int], seed: int) -> None:
    sides = _random_sides(seed)
    absmax = max(len(sides.positive), len(sides.negative), 1)
    # Ascending and irregular: neighbours far apart as well as close together, and steps below one bin.
    steps = np.sort(np.concatenate([[0.3, 1.0], np.geomspace(1.01, 3 * absmax, 19) / max(levels)]))
    p = METRICS[metric]
    actual = on_every_variant(lambda: kernel_errors(sides, metric, p).fixed_levels(steps, *levels))
    expected = reference.HistogramErrors(sides, metric, p).fixed_levels(steps, *levels)
    total = sides.positive.sum() + sides.negative.sum() + sides.zeros
    scale = total * (np.log(max(total, 2)) if metric == "kl" else absmax**p)
    assert np.all(np.abs(actual - expected) <= _bound(expected, scale, metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("levels", "stride"), [(15, 1), (3, 1), (1, 1), (40, 3)])
def test_best_split_agrees_with_the_twin(metric: str, levels: int, stride: int) -> None:
    sides = _random_sides(7)
    steps = np.geomspace(0.5, 800, 7)
    p = METRICS[metric]
    errors, splits = on_every_variant(
        lambda: kernel_errors(sides, metric, p).best_split(steps, levels, 0, levels, stride)
    )
    twin = reference.HistogramErrors(sides, metric, p)
    expected, _ = twin.best_split(steps, levels, 0, levels, stride)
    scale = (sides.positive.sum() + sides.negative.sum()) * 2400.0**p
    assert np.all(np.abs(errors - expected) <= _bound(expected, scale, metric))
    assert set(splits.tolist()) <= set(range(0, levels + 1, stride))
    # The split that was found has the error that was reported.
    for step, split, error in zip(steps, splits.tolist(), errors, strict=True):
        again = twin.fixed_levels(np.array([step]), levels - split, split)
        assert abs(again[0] - error) <= _bound(again[0], scale, metric)


@pytest.mark.parametrize("grid", ["power_of_two", "symmetric", "uniform"])
@pytest.mark.parametrize("name", ["gaussian", "relu", "silu", "negative", "relu6"])
def test_whole_search_agrees_with_the_twin(grid: Any, name: str) -> None:
    arguments = histogram(data_sets(2000)[name], resolution=7)
    for metric in ("mse", "mae", "kl", "noclipping", "hmse"):
        options: dict[str, Any] = {"bits": [4, 2], "grid": grid, "metric": metric}
        found = on_every_variant(lambda options=options: search_histogram(**arguments, **options))
        twins = reference.search_histogram(**arguments, **options)
        for ours, twin in zip(found, twins, strict=True):
            assert (ours.bits, ours.signed) == (twin.bits, twin.signed)
            if grid != "uniform":  # the search for uniform grids takes its path by the errors it meets
                np.testing.assert_array_equal(ours.thresholds, twin.thresholds)
                np.testing.assert_allclose(ours.errors, twin.errors, rtol=1e-7, atol=1e-10 * twin.errors.max())
            assert ours.error == pytest.approx(twin.error, rel=1e-3, abs=1e-12)
