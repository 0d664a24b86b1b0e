"""Codebook search on ResNet-20's largest kernel, against k-means with rounded centres, where scikit-learn is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detent.kernels.codebook_search import search_codebook
from detent.kernels.quantize import lut_fake_quantize
from detent.kernels.reference.codebook_search import search_codebook as twin
from harness import Row, compare, limit, time_in_turns

TITLE = "codebook search: 64 x 64 x 3 x 3 float32, 4 bits, a threshold for each of 64 channels of 576"
SHAPE = (64, 64, 3, 3)
BITS = 4
STARTS = 10

Array = npt.NDArray[np.float32]


def _weights() -> Array:
    rng = np.random.default_rng(0)
    sizes = np.exp(0.5 * rng.standard_normal((SHAPE[0], 1, 1, 1)))
    return (0.05 * sizes * rng.standard_t(5, SHAPE)).astype(np.float32)


def verify() -> None:
    """Some of the channels against the twin, to the bit."""
    w = _weights()[:8]
    for scale in ("symmetric", "power_of_two"):
        options: dict[str, Any] = {"bits": BITS, "scale": scale}
        found, expected = search_codebook(w, **options), twin(w, **options)
        np.testing.assert_array_equal(found.tables, expected.tables)
        np.testing.assert_array_equal(found.thresholds, expected.thresholds)
        np.testing.assert_array_equal(found.errors, expected.errors)


def measure() -> list[Row]:
    """Times on one thread, and what k-means loses more."""
    w = _weights()
    cases: dict[str, dict[str, Any]] = {
        "real thresholds": {},
        "powers of two": {"scale": "power_of_two"},
        "levels alone": {"thresholds": np.abs(w).max(axis=(1, 2, 3))},
        "a codebook for each channel": {"scope": "channel"},
    }
    times = time_in_turns(
        {name: lambda options=options: search_codebook(w, bits=BITS, **options) for name, options in cases.items()},
        rounds=5,
    )
    return [*(limit(name, seconds) for name, seconds in times.items()), *_against_k_means(w)]


def _against_k_means(w: Array) -> list[Row]:
    try:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError:
        print("scikit-learn is not installed: no comparison with k-means")
        return []
    thresholds = np.abs(w).max(axis=(1, 2, 3))
    scale = thresholds / np.float32(128)
    values = np.clip(w / scale[:, None, None, None], -128, 127).reshape(-1, 1)

    def k_means() -> Array:
        centres = KMeans(1 << BITS, n_init=STARTS, random_state=0).fit(values).cluster_centers_.ravel()
        table = np.sort(np.rint(centres)).astype(np.float32)
        table[np.abs(table).argmin()] = 0
        return table

    with threadpool_limits(1):
        times = time_in_turns(
            {"ours": lambda: search_codebook(w, bits=BITS), "scikit-learn": k_means}, rounds=3, warmups=0
        )
        rounded = lut_fake_quantize(w, scale, k_means(), axis=0)
    error = float(np.mean((rounded.astype(np.float64) - w) ** 2))
    same = search_codebook(w, bits=BITS, thresholds=thresholds).errors.mean()
    ours = search_codebook(w, bits=BITS).errors.mean()
    note = f"k-means from {STARTS} starts: error {error / same:.4f} x ours at its thresholds, {error / ours:.3f} x ours"
    return [compare("real thresholds", times, "ours", "scikit-learn", note=note)]
