"""The codebook search on every instruction set and thread count, against its twin; and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from detent.errors import ConfigError
from detent.kernels.codebook_search import search_codebook
from detent.kernels.reference.codebook_search import search_codebook as twin
from tests.cases import LAYOUTS, samples
from tests.fanout import VARIANTS, assert_parity, running

Array = npt.NDArray[np.float32]

SHAPES = {"one": (3, 1), "kernel": (5, 3, 3), "row": (3, 200), "many": (33, 20)}
W = np.linspace(-1, 1, 96, dtype=np.float32).reshape(4, 6, 4)


def kernel(shape: tuple[int, ...], *, seed: int) -> Array:
    """Heavy-tailed channels of different sizes; one of zeros, one of one sign."""
    w = samples(shape, seed=seed)
    w *= np.exp2(np.arange(shape[0], dtype=np.float32) % 7 - 3).reshape(-1, *[1] * (len(shape) - 1))
    w[1] = 0
    w[2] = np.abs(w[2])
    return w


def importance(w: Array) -> Array:
    return np.random.default_rng(3).random(w.shape, np.float32) ** 2


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scope", ["tensor", "channel"])
@pytest.mark.parametrize("scale", ["symmetric", "power_of_two"])
@pytest.mark.parametrize(("bits", "metric"), [(4, "mse"), (2, "hmse")])
def test_equals_the_twin(name: str, scope: Any, scale: Any, bits: int, metric: Any) -> None:
    w = kernel(SHAPES[name], seed=bits)
    options: dict[str, Any] = {"bits": bits, "scale": scale, "scope": scope, "metric": metric}
    if metric == "hmse":
        options["weights"] = importance(w)
    assert_parity(lambda: search_codebook(w, **options), twin(w, **options))


@pytest.mark.parametrize("bits", [2, 3, 7])
@pytest.mark.parametrize("scope", ["tensor", "channel"])
def test_levels_for_given_thresholds_equal_the_twins(bits: int, scope: Any) -> None:
    w = kernel((7, 50), seed=bits)
    options: dict[str, Any] = {"bits": bits, "scope": scope, "thresholds": np.linspace(0.1, 9, 7, dtype=np.float32)}
    found = twin(w, **options)
    assert_parity(lambda: search_codebook(w, **options), found)
    np.testing.assert_array_equal(found.thresholds, options["thresholds"])


def test_one_threshold_for_the_whole_array() -> None:
    w = kernel((6, 40), seed=9)
    assert_parity(lambda: search_codebook(w, bits=3, axis=None), twin(w, bits=3, axis=None))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_layout_does_not_matter(layout: str, axis: int | None) -> None:
    w = samples((6, 5, 3, 2), seed=2)
    h = importance(w)
    expected = search_codebook(w, bits=3, axis=axis, metric="hmse", weights=h)
    view, weights = LAYOUTS[layout](w), LAYOUTS["fortran"](h)
    assert_parity(lambda: search_codebook(view, bits=3, axis=axis, metric="hmse", weights=weights), expected)


def test_awkward_floats() -> None:
    tiny = np.float32(2.0**-149)
    w = np.array([[tiny, -tiny, 0, -0.0], [3e38, -3e38, 1, 2], [1e-20, 1e20, -1e20, 0]], np.float32)
    for scope in ("tensor", "channel"):
        found = search_codebook(w, bits=2, scope=scope)
        assert np.isfinite(found.thresholds).all()
        assert (found.thresholds > 0).all()
        assert np.isfinite(found.errors).all()
        assert_parity(lambda scope=scope: search_codebook(w, bits=2, scope=scope), twin(w, bits=2, scope=scope))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bits": 1}, "bits of a codebook must be a whole number in 2..7, got 1"),
        ({"bits": 8}, "got 8"),
        ({"bits": 4.0}, "got 4.0"),
        ({"bits": True}, "got True"),
        ({"scale": "symetric"}, "did you mean 'symmetric'"),
        ({"scope": "chanel"}, "did you mean 'channel'"),
        ({"metric": "mae"}, "searched by squared error, got metric 'mae'"),
        ({"min_threshold": 0.0}, "min_threshold must be in"),
        ({"weights": np.ones_like(W)}, "belong to metric 'hmse'"),
        ({"metric": "hmse"}, "belong to metric 'hmse'"),
    ],
)
def test_refused_options(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        search_codebook(W, **{"bits": 4} | change)


@pytest.mark.parametrize(
    ("w", "change", "text"),
    [
        (W.astype(np.float64), {}, "float32"),
        (W[:0], {}, "is empty"),
        (W, {"axis": 3}, "axis 3 is outside w of shape [4, 6, 4]"),
        (W, {"thresholds": np.ones(3, np.float32)}, "row or more of 4 thresholds"),
        (W, {"thresholds": np.zeros(4, np.float32)}, "positive"),
        (W, {"thresholds": np.full(4, np.nan, np.float32)}, "positive"),
        (W, {"thresholds": np.ones(4)}, "float32"),
        (W, {"metric": "hmse", "weights": np.ones((4, 6), np.float32)}, "shape of w"),
    ],
)
def test_refused_arrays(w: Any, change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        search_codebook(w, **{"bits": 4} | change)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("thresholds", [None, np.ones(4, np.float32)])
def test_nonfinite_values_are_located(value: float, thresholds: Array | None) -> None:
    w = W.copy()
    w[2, 5, 3] = w[3, 0, 0] = value
    for variant in VARIANTS:
        with running(variant), pytest.raises(ValueError, match="weights of channel 2 hold NaN"):
            search_codebook(w, bits=4, thresholds=thresholds)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-30])
@pytest.mark.parametrize("thresholds", [None, np.ones(4, np.float32)])
def test_bad_importance_is_located(value: float, thresholds: Array | None) -> None:
    h = np.ones_like(W)
    h[1, 0, 0] = value
    with pytest.raises(ValueError, match="importance weights of channel 1 hold"):
        search_codebook(W, bits=4, metric="hmse", weights=h, thresholds=thresholds)
