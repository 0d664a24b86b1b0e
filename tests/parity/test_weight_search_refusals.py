"""What the weight search refuses, and how it says so."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from detent.errors import ConfigError
from detent.kernels.weight_search import search_weights
from tests.fanout import VARIANTS, running

W = np.linspace(-1, 1, 96, dtype=np.float32).reshape(4, 6, 4)
GOOD: dict[str, Any] = {"bits": [8], "grid": "symmetric", "metric": "mse"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bits": [1]}, "bits of signed codes must be whole numbers in 2..16, got 1"),
        ({"bits": [17]}, "got 17"),
        ({"bits": [8.0]}, "got 8.0"),
        ({"bits": [True]}, "got True"),
        ({"grid": "symetric"}, "did you mean 'symmetric'"),
        ({"metric": "MSE"}, "unknown metric 'MSE'"),
        ({"method": "exat"}, "did you mean 'exact'"),
        ({"metric": "lp", "p": 0.1}, "p must be in 0.5..6.0"),
        ({"p": float("nan")}, "p must be in"),
        ({"min_threshold": 0.0}, "min_threshold must be in"),
        ({"min_threshold": float("inf")}, "min_threshold must be in"),
        ({"grid": "uniform", "narrow_range": True}, "narrow_range"),
        ({"weights": np.ones_like(W)}, "belong to metric 'hmse'"),
        ({"metric": "hmse"}, "belong to metric 'hmse'"),
    ],
)
def test_options(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        search_weights(W, **GOOD | change)


@pytest.mark.parametrize("metric", ["mse", "kl"])
@pytest.mark.parametrize(
    ("w", "change", "text"),
    [
        (W.astype(np.float64), {}, "float32"),
        (W[:0], {}, "is empty"),
        (W, {"axis": 3}, "axis 3 is outside w of shape [4, 6, 4]"),
        (W, {"axis": -4}, "axis -4 is outside"),
        (W, {"group_size": 4}, "group_size 4 does not divide the 6"),
        (W, {"group_size": 0}, "group_size 0 does not divide the 6"),
        (W, {"group_size": 2, "axis": 2}, "`axis` 0 or 1"),
        (W, {"group_size": 2, "axis": None}, "give `axis`"),
        (W[0, 0], {"group_size": 2}, "at least two axes"),
    ],
)
def test_arrays(metric: str, w: Any, change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        search_weights(w, **GOOD | {"metric": metric} | change)


def test_importance_has_the_shape_and_type_of_the_weights() -> None:
    with pytest.raises(ValueError, match="shape of w"):
        search_weights(W, weights=np.ones((4, 6), np.float32), **GOOD | {"metric": "hmse"})
    with pytest.raises(ValueError, match="float32"):
        search_weights(W, weights=np.ones(W.shape), **GOOD | {"metric": "hmse"})
    with pytest.raises(TypeError, match="NumPy array or a CPU tensor"):
        search_weights([1.0, 2.0], **GOOD)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_located(value: float) -> None:
    w = W.copy()
    w[2, 5, 3] = w[3, 0, 0] = value
    for variant in VARIANTS:
        with running(variant):
            with pytest.raises(ValueError, match="weights of channel 2 hold NaN"):
                search_weights(w, **GOOD)
            with pytest.raises(ValueError, match="weights of channel 2, group 2 hold NaN"):
                search_weights(w, group_size=2, **GOOD)
            with pytest.raises(ValueError, match="weights of the tensor hold NaN"):
                search_weights(w, axis=None, **GOOD)
    with pytest.raises(ValueError, match="row 2 hold NaN"):
        search_weights(w, **GOOD | {"metric": "kl"})


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-30])
def test_bad_importance_is_located(value: float) -> None:
    h = np.ones_like(W)
    h[1, 0, 0] = value
    with pytest.raises(ValueError, match="importance weights of channel 1 hold"):
        search_weights(W, weights=h, **GOOD | {"metric": "hmse"})
