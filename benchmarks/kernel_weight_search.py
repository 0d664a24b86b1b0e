"""Threshold search on the weights of a large convolution, against the same search in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detent.kernels.reference.weight_search import search_weights as twin
from detent.kernels.weight_search import search_weights
from harness import Row, compare, limit, time_in_turns

TITLE = "weight search: 512 x 512 x 3 x 3 float32, per channel (512 channels of 4608)"
SHAPE = (512, 512, 3, 3)
BITS = [8, 4, 3, 2]
RIVAL_CHANNELS = 32
RIVAL_ROUNDS = 15
RIVAL_CANDIDATES = 30

Array = npt.NDArray[np.float32]


def _weights() -> Array:
    return (0.05 * np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32)


def verify() -> None:
    """Full channels against the twin: the exact search against all 0.6 M sorted breakpoints, the others to the bit."""
    w = _weights()[:2]
    exact: dict[str, Any] = {"bits": BITS, "grid": "symmetric", "metric": "mse"}
    for found, expected in zip(search_weights(w, **exact), twin(w, **exact), strict=True):
        np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-9)
    dense: dict[str, Any] = {**exact, "method": "grid", "bits": [8, 2]}
    for found, expected in zip(search_weights(w[:1], **dense), twin(w[:1], **dense), strict=True):
        np.testing.assert_array_equal(found.thresholds, expected.thresholds)
        np.testing.assert_array_equal(found.errors, expected.errors)


def measure() -> list[Row]:
    """Goals for all four widths together on one thread; the rival does one width."""
    w = _weights()
    few = w[:RIVAL_CHANNELS]
    symmetric: dict[str, Any] = {"grid": "symmetric", "metric": "mse"}
    times = time_in_turns(
        {
            "exact": lambda: search_weights(w, bits=BITS, **symmetric),
            "dense": lambda: search_weights(w, bits=BITS, method="grid", **symmetric),
            "power of two": lambda: search_weights(w, bits=BITS, grid="power_of_two", metric="mse"),
            "uniform": lambda: search_weights(w, bits=BITS, grid="uniform", metric="mse"),
            "mae": lambda: search_weights(w, bits=BITS, grid="symmetric", metric="mae"),
        },
        rounds=5,
    )
    rivals = time_in_turns(
        {
            "exact": lambda: search_weights(few, bits=[8], **symmetric),
            "NumPy walk": lambda: _walk(few, 8),
        },
        rounds=3,
    )
    gain = float(np.median(_walk(few, 8) / search_weights(few, bits=[8], **symmetric)[0].errors))
    walk = (
        f"{RIVAL_ROUNDS} rounds of {RIVAL_CANDIDATES} thresholds on {RIVAL_CHANNELS} channels; error {gain:.4f} x ours"
    )
    return [
        limit("symmetric mse, exact, {8,4,3,2} bits", times["exact"], at_most_ms=1000),
        limit("symmetric mse, dense grid, {8,4,3,2} bits", times["dense"], at_most_ms=150),
        limit("power-of-two mse, {8,4,3,2} bits", times["power of two"]),
        limit("uniform mse, {8,4,3,2} bits", times["uniform"]),
        limit("symmetric mae, {8,4,3,2} bits", times["mae"]),
        compare("symmetric mse, exact, 8 bits", rivals, "exact", "NumPy walk", note=walk),
    ]


def _walk(w: Array, bits: int) -> npt.NDArray[np.float64]:
    """Least mean errors of the usual iterative search: 30 thresholds around the current one, move to the best."""
    rows = w.reshape(len(w), -1)
    steps = 1 << (bits - 1)
    current = np.abs(rows).max(axis=1, keepdims=True)
    least = np.full(len(rows), np.inf)
    for _ in range(RIVAL_ROUNDS):
        candidates = current * np.linspace(0.7, 1.2, RIVAL_CANDIDATES, dtype=np.float32)
        errors = np.empty(candidates.shape)
        for i in range(RIVAL_CANDIDATES):
            step = candidates[:, i : i + 1] / steps
            difference = np.clip(np.rint(rows / step), -steps, steps - 1) * step - rows
            errors[:, i] = np.square(difference).mean(axis=1)
        best = errors.argmin(axis=1)[:, None]
        current = np.take_along_axis(candidates, best, axis=1)
        least = np.minimum(least, np.take_along_axis(errors, best, axis=1)[:, 0])
    return least
