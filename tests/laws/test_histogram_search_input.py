"""Wrong input to the histogram search is refused and named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from detent.errors import ConfigError
from detent.kernels.histogram_search import search_histogram

VALID: dict[str, Any] = {
    "counts": np.array([3, 4, 5]),
    "first_bin": -1,
    "width": 0.5,
    "minimum": -0.5,
    "maximum": 0.9,
    "bits": [8],
    "grid": "symmetric",
    "metric": "mse",
}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"metric": "msee"}, ConfigError, "did you mean 'mse'"),
        ({"grid": "uniforme"}, ConfigError, "did you mean 'uniform'"),
        ({"bits": [17]}, ConfigError, "bits"),
        ({"bits": [1]}, ConfigError, "2..16"),
        ({"bits": [0], "grid": "uniform"}, ConfigError, "1..16"),
        ({"bits": [4.0]}, ConfigError, "whole"),
        ({"bits": [True]}, ConfigError, "whole"),
        ({"counts": np.zeros(3, np.int64)}, ValueError, "empty"),
        ({"counts": np.zeros(0, np.int64)}, ValueError, "at least one bin"),
        ({"counts": np.zeros((3, 1), np.int64)}, ValueError, "vector"),
        ({"counts": np.array([1, -1, 2])}, ValueError, "not negative"),
        ({"counts": np.array([1.0, np.nan, 2.0])}, ValueError, "finite"),
        ({"counts": np.array([1.0, np.inf, 2.0])}, ValueError, "finite"),
        ({"counts": np.array([1, 1, 2], np.int32)}, TypeError, "int64"),
        ({"counts": [1, 2, 3]}, TypeError, "NumPy"),
        ({"width": 0.3}, ValueError, "power of two"),
        ({"width": 0.0}, ValueError, "power of two"),
        ({"width": math.nan}, ValueError, "power of two"),
        ({"minimum": math.nan}, ValueError, "minimum"),
        ({"maximum": math.inf}, ValueError, "maximum"),
        ({"minimum": 0.4}, ValueError, "leave out occupied bins"),
        ({"maximum": 0.3}, ValueError, "leave out occupied bins"),
        ({"zeros": 5}, ValueError, "zeros"),
        ({"zeros": -1}, ValueError, "zeros"),
        ({"zeros": 1, "first_bin": 1, "minimum": 0.5, "maximum": 1.9}, ValueError, "zeros"),
        ({"p": 0.0}, ConfigError, "p must be"),
        ({"p": 30.0}, ConfigError, "p must be"),
        ({"p": math.nan}, ConfigError, "p must be"),
        ({"z_threshold": 0.0}, ConfigError, "z_threshold"),
        ({"z_threshold": math.nan}, ConfigError, "z_threshold"),
        ({"z_threshold": 3.0, "mean": math.nan}, ValueError, "mean"),
        ({"z_threshold": 3.0, "std": -1.0}, ValueError, "std"),
        ({"min_threshold": 0.0}, ConfigError, "min_threshold"),
        ({"narrow_range": True, "signed": False}, ConfigError, "narrow_range"),
        ({"narrow_range": True, "grid": "uniform"}, ConfigError, "narrow_range"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        search_histogram(**{**VALID, **change})
