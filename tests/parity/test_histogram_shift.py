"""The joint search of threshold and shift: against its twin, against every shift one by one, against shifted data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detent.errors import ConfigError
from detent.kernels.histogram_search import search_histogram
from detent.kernels.histogram_shift import search_shift
from detent.kernels.reference.histogram_search import HistogramErrors
from tests.fanout import on_every_variant
from tests.histograms import data_sets, fake_quantize, histogram

TAILED = ("silu", "leaky", "uniform")
GRIDS = ("power_of_two", "symmetric")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", TAILED)
def test_agrees_with_the_twin(grid: Any, name: str) -> None:
    arguments = histogram(data_sets(2000)[name], resolution=6)
    for metric in ("mse", "mae", "kl", "noclipping"):
        options: dict[str, Any] = {"bits": 3, "grid": grid, "metric": metric}
        found = on_every_variant(lambda options=options: search_shift(**arguments, **options))
        twin = search_shift(**arguments, **options, evaluator=HistogramErrors)
        np.testing.assert_array_equal(found.thresholds, twin.thresholds)
        np.testing.assert_allclose(found.errors, twin.errors, rtol=1e-7, atol=1e-10 * twin.errors.max())
        assert found.error == pytest.approx(twin.error, rel=1e-7)


@pytest.mark.parametrize("name", TAILED)
@pytest.mark.parametrize("bits", [3, 4])
def test_no_shift_of_any_power_of_two_is_better(name: str, bits: int) -> None:
    """All thresholds and shifts, each quantized element by element."""
    x = data_sets(20_000)[name]
    found = search_shift(**histogram(x), bits=bits, grid="power_of_two", metric="mse")
    levels = 1 << bits
    errors = {
        (2.0**k, q): float(np.mean((fake_quantize(x, 2.0**k / levels, q, levels - 1 - q) - x) ** 2))
        for k in range(-6, 6)
        for q in range(levels)
    }
    (threshold, q), least = min(errors.items(), key=lambda entry: entry[1])
    assert found.error == pytest.approx(least, rel=0.01)
    assert found.threshold == threshold
    assert found.shift == q * threshold / levels


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_is_that_of_shifted_data_on_an_unsigned_grid(grid: Any, bits: int) -> None:
    x = data_sets(20_000)["silu"]
    found = search_shift(**histogram(x), bits=bits, grid=grid, metric="mse")
    assert 0 < found.shift < found.threshold
    step, q = found.threshold / (1 << bits), int(found.steps_shifted[found.best])
    assert found.shift == q * step
    shifted = x + found.shift
    measured = float(np.mean((fake_quantize(shifted, step, 0, (1 << bits) - 1) - shifted) ** 2))
    assert found.error == pytest.approx(measured, rel=0.02)
    again, free = (
        search_histogram(**histogram(shifted), bits=[bits], grid=grid, metric="mse", signed=False, holding=level)[0]
        for level in (found.shift, None)
    )
    (signed,) = search_histogram(**histogram(x), bits=[bits], grid=grid, metric="mse", signed=True)
    # What the plan will choose when it sees the shifted data: zero stays on the grid, at a small price.
    assert again.threshold == pytest.approx(found.threshold, rel=0.02)
    assert found.shift / (again.threshold / (1 << bits)) == pytest.approx(q, abs=1e-4)
    assert found.error == pytest.approx(again.error, rel=0.02)
    assert free.error <= again.error <= 1.1 * free.error
    assert found.error < 0.6 * signed.error


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_without_clipping_the_levels_reach_both_ends(grid: Any, bits: int) -> None:
    x = data_sets(2000)["silu"]
    found = search_shift(**histogram(x), bits=bits, grid=grid, metric="noclipping")
    step, q = found.threshold / (1 << bits), int(found.steps_shifted[0])
    assert q * step >= -x.min()
    # A power of two may end less than one step early, as without a shift.
    assert ((1 << bits) - 1 - q) * step >= x.max() - (step if grid == "power_of_two" or bits == 1 else 0)


def test_positive_data_are_not_shifted() -> None:
    found = search_shift(**histogram(data_sets(2000)["relu"]), bits=4, grid="symmetric", metric="mse")
    assert found.shift == 0


def test_least_threshold_is_kept() -> None:
    found = search_shift(
        **histogram(data_sets(2000)["silu"]), bits=4, grid="power_of_two", metric="mse", min_threshold=64.0
    )
    assert list(found.thresholds) == [64.0, 128.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": "uniform"}, "grid"),
        ({"bits": 0}, "bits"),
        ({"bits": 17}, "bits"),
        ({"bits": True}, "bits"),
        ({"metric": "max"}, "metric"),
        ({"p": 9.0}, "p must"),
        ({"min_threshold": 0.0}, "min_threshold"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"bits": 4, "grid": "symmetric", "metric": "mse", **options}
    with pytest.raises(ConfigError, match=message):
        search_shift(**histogram(data_sets(100)["silu"]), **arguments)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("metric", ["mse", "noclipping"])
def test_a_level_is_held(grid: Any, metric: Any) -> None:
    x = np.abs(data_sets(2000)["gaussian"])
    for level in (0.5, 1.0) if grid == "power_of_two" else (0.3, 0.5, 1.0):
        (found,) = search_histogram(**histogram(x), bits=[4], grid=grid, metric=metric, holding=level)
        steps = level * 16 / found.threshold
        assert steps == pytest.approx(round(steps), abs=1e-5)
        assert 1 <= round(steps) < 16
        if metric == "noclipping":
            assert found.threshold >= x.max()


def test_a_level_no_grid_has_changes_nothing() -> None:
    arguments = histogram(np.abs(data_sets(2000)["gaussian"]))
    options: dict[str, Any] = {"bits": [4], "grid": "power_of_two", "metric": "mse"}
    (free,), (bound,) = (search_histogram(**arguments, **options, holding=level) for level in (None, 1 / 3))
    np.testing.assert_array_equal(free.errors, bound.errors)


@pytest.mark.parametrize(("grid", "level"), [("uniform", 1.0), ("symmetric", 0.0), ("symmetric", np.inf)])
def test_a_level_is_a_positive_number(grid: Any, level: float) -> None:
    arguments = histogram(data_sets(100)["silu"])
    with pytest.raises(ConfigError, match="holding"):
        search_histogram(**arguments, bits=[4], grid=grid, metric="mse", holding=level)
