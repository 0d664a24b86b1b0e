"""Histograms of named data sets, as the statistics kernel lays them out: anchored at zero, bins a power of two wide."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

RESOLUTION = 12
"""Bits of resolution: 2^11 to 2^12 bins between zero and the largest magnitude."""


def data_sets(n: int = 20_000, seed: int = 0) -> dict[str, Doubles]:
    """Float32 values, as doubles, of every shape of distribution that activations take."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=n)
    shapes = {
        "gaussian": normal,
        "laplace": rng.laplace(size=n),
        "uniform": rng.uniform(-0.3, 1, size=n),
        "relu": np.maximum(normal - 0.3, 0),
        "sharp_relu": np.maximum(rng.laplace(size=n), 0) ** 2,
        "relu6": np.clip(normal * 4, 0, 6),
        "leaky": np.where(normal > 0, normal, 0.05 * normal),
        "silu": 2 * normal / (1 + np.exp(-2 * normal)),
        "bimodal": np.where(rng.random(n) < 0.3, 4 + 0.3 * normal, -1 + 0.1 * normal),
        "heavy": np.clip(rng.standard_t(3, size=n), -80, 80),
        "negative": -np.abs(normal),
        "sigmoid": 1 / (1 + np.exp(-2 * normal)),
        "outlier": np.append(normal[1:], 60.0),
    }
    return {name: x.astype(np.float32).astype(np.float64) for name, x in shapes.items()}


def histogram(x: Doubles, resolution: int = RESOLUTION) -> dict[str, Any]:
    """The arguments of `search_histogram` that describe the data."""
    absmax = float(np.abs(x).max())
    width = 2.0 ** (np.frexp(absmax)[1] - resolution) if absmax else 2.0**-20
    index = np.floor(x / width).astype(np.int64)
    first = int(index.min())
    return {
        "counts": np.bincount(index - first).astype(np.int64),
        "first_bin": first,
        "width": float(width),
        "minimum": float(x.min()),
        "maximum": float(x.max()),
        "zeros": int((x == 0).sum()),
    }


def fake_quantize(x: Doubles, step: float, negative_levels: int, positive_levels: int) -> Doubles:
    """Nearest level, ties to even."""
    return np.clip(np.rint(x / step), -negative_levels, positive_levels) * step
