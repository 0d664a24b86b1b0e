"""The weight search on every instruction set and thread count, against its twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from detent.kernels.reference.weight_search import search_weights as twin
from detent.kernels.weight_search import WeightSearch, search_weights
from tests.cases import LAYOUTS, all_floats, samples
from tests.fanout import assert_parity, on_every_variant

Array = npt.NDArray[np.float32]

SIZES = {"one": 1, "kernel": 9, "above_vector": 17, "row": 200, "above_block": 2100}


def rows(size: int, *, seed: int) -> Array:
    """A channel for each of three threads: heavy-tailed, zeros, and of one sign."""
    w = samples((3, size), seed=seed)
    w[1] = 0
    w[2] = np.abs(w[2])
    return w


def importance(w: Array) -> Array:
    return np.random.default_rng(3).random(w.shape, np.float32) ** 2


DENSE = [
    ("power_of_two", "noclipping", 2.0),
    ("power_of_two", "mse", 2.0),
    ("power_of_two", "hmse", 2.0),
    ("power_of_two", "mae", 2.0),
    ("power_of_two", "lp", 2.5),
    ("symmetric", "noclipping", 2.0),
    ("symmetric", "mse", 2.0),
    ("symmetric", "hmse", 2.0),
    ("symmetric", "mae", 2.0),
    ("symmetric", "lp", 3.0),
    ("symmetric", "lp", 0.7),
    ("uniform", "noclipping", 2.0),
    ("uniform", "mse", 2.0),
    ("uniform", "hmse", 2.0),
    ("uniform", "mae", 2.0),
    ("uniform", "lp", 2.5),
]


@pytest.mark.parametrize("name", ["kernel", "row"])
@pytest.mark.parametrize(("grid", "metric", "p"), DENSE)
def test_dense_search_equals_the_twin(name: str, grid: Any, metric: Any, p: float) -> None:
    w = rows(SIZES[name], seed=SIZES[name])
    bits = [5] if name == "row" else [8, 2]
    options: dict[str, Any] = {"bits": bits, "grid": grid, "metric": metric, "p": p, "method": "grid"}
    if metric == "hmse":
        options["weights"] = importance(w)
    assert_parity(lambda: search_weights(w, **options), twin(w, **options))


@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_dense_search_equals_the_twin_beyond_one_block(metric: Any) -> None:
    w = samples((2, SIZES["above_block"]), seed=1)
    options: dict[str, Any] = {"bits": [8, 3], "grid": "symmetric", "metric": metric, "method": "grid"}
    assert_parity(lambda: search_weights(w, **options), twin(w, **options))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("metric", ["mse", "hmse"])
@pytest.mark.parametrize("narrow", [False, True], ids=["full", "narrow"])
def test_exact_search_reaches_the_twins_error(name: str, metric: Any, narrow: bool) -> None:
    w = rows(SIZES[name], seed=SIZES[name])
    options: dict[str, Any] = {"bits": [8, 4, 3, 2], "grid": "symmetric", "metric": metric, "narrow_range": narrow}
    if metric == "hmse":
        options["weights"] = importance(w)
    found = on_every_variant(lambda: search_weights(w, **options))
    for ours, expected in zip(found, twin(w, **options), strict=True):
        # Thresholds may differ only where two are equally good.
        np.testing.assert_allclose(ours.errors, expected.errors, rtol=1e-9, atol=1e-14)


def test_exact_search_of_a_whole_tensor() -> None:
    w = samples((40, 500), seed=9)
    options: dict[str, Any] = {"bits": [8, 3], "grid": "symmetric", "metric": "mse", "axis": None}
    found = on_every_variant(lambda: search_weights(w, **options))
    for ours, expected in zip(found, twin(w, **options), strict=True):
        np.testing.assert_allclose(ours.errors, expected.errors, rtol=1e-9)


def test_awkward_floats() -> None:
    finite = all_floats()
    w = np.stack([finite, finite[::-1], -finite])
    for grid in ("power_of_two", "symmetric", "uniform"):
        for metric in ("mse", "mae"):
            options: dict[str, Any] = {"bits": [8, 2], "grid": grid, "metric": metric, "method": "grid"}
            assert_parity(lambda options=options: search_weights(w, **options), twin(w, **options))
    exact = on_every_variant(lambda: search_weights(w, bits=[8, 2], grid="symmetric", metric="mse"))
    assert all(np.isfinite(search.errors).all() and (search.thresholds > 0).all() for search in exact)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("axis", "group_size"), [(0, None), (1, None), (-1, None), (None, None), (0, 4), (1, 3), (0, 12)]
)
def test_layout_does_not_matter(layout: str, axis: int | None, group_size: int | None) -> None:
    w = samples((6, 12, 3, 2), seed=2)
    h = importance(w)
    options: dict[str, Any] = {
        "bits": [4],
        "grid": "symmetric",
        "metric": "hmse",
        "axis": axis,
        "group_size": group_size,
    }
    view, weights = LAYOUTS[layout](w), LAYOUTS["fortran"](h)
    expected = search_weights(w, weights=h, **options)
    assert_parity(lambda: search_weights(view, weights=weights, **options), expected)
    powers = {**options, "grid": "power_of_two"}
    assert_parity(lambda: search_weights(view, weights=weights, **powers), twin(w, weights=h, **powers))


def test_views_with_gaps_are_read_in_place() -> None:
    w = samples((6, 8, 4), seed=4)
    expected = search_weights(np.ascontiguousarray(w[::2, ::-1, 1:3]), bits=[4], grid="symmetric", metric="mse")
    assert_parity(lambda: search_weights(w[::2, ::-1, 1:3], bits=[4], grid="symmetric", metric="mse"), expected)


def test_kl_gives_the_same_bits_everywhere() -> None:
    w = rows(200, seed=5)
    for grid in ("power_of_two", "symmetric", "uniform"):
        found = on_every_variant(lambda grid=grid: search_weights(w, bits=[8, 2], grid=grid, metric="kl"))
        assert isinstance(found[0], WeightSearch)
        assert not found[0].exact
