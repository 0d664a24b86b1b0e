"""Threshold search on histograms: whole error curves, several metrics and bit widths."""

from __future__ import annotations

from typing import Any

import numpy as np

from detent import _core
from detent.kernels.histogram_search import search_histogram
from detent.kernels.reference import histogram_search as reference
from harness import Row, compare, limit, time_in_turns

TITLE = "Threshold search on histograms (one tensor, 2^11..2^12 bins on each occupied side)"

METRICS: dict[str, dict[str, Any]] = {
    "mse": {"metric": "mse"},
    "mae": {"metric": "mae"},
    "lp, p = 3": {"metric": "lp", "p": 3.0},
    "kl": {"metric": "kl"},
    "noclipping": {"metric": "noclipping"},
}
WIDTHS = [8, 4, 2]


def _histogram(x: np.ndarray, resolution: int = 12) -> dict[str, Any]:
    width = 2.0 ** (int(np.frexp(np.abs(x).max())[1]) - resolution)
    index = np.floor(x / width).astype(np.int64)
    first = int(index.min())
    return {
        "counts": np.bincount(index - first).astype(np.int64),
        "first_bin": first,
        "width": width,
        "minimum": float(x.min()),
        "maximum": float(x.max()),
        "zeros": int((x == 0).sum()),
    }


def _data(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.laplace(size=n).astype(np.float32).astype(np.float64)
    return {"signed": x, "unsigned": np.maximum(x, 0)}


def _plain_numpy(histogram: dict[str, Any], bits: int) -> int:
    """The usual way: quantize the bin centres for every candidate, here the same number of them."""
    centers = (np.arange(len(histogram["counts"])) + histogram["first_bin"] + 0.5) * histogram["width"]
    weights = histogram["counts"].astype(np.float64)
    signed = histogram["minimum"] < 0
    half = 1 << (bits - signed)
    absmax = max(histogram["maximum"], -histogram["minimum"])
    count = len(search_histogram(**histogram, bits=[bits], grid="symmetric", metric="mse")[0].errors)
    errors = []
    for threshold in np.linspace(0.001, 1, count) * absmax:
        step = threshold / half
        quantized = np.clip(np.rint(centers / step), -half if signed else 0, half - 1) * step
        errors.append(float(weights @ (quantized - centers) ** 2))
    return int(np.argmin(errors))


def verify() -> None:
    """The kernel agrees with its twin at the resolution that is timed, where the twin can afford it."""
    for name, x in _data(100_000).items():
        histogram = _histogram(x)
        for metric in ("mse", "mae", "kl"):
            for grid in ("power_of_two", "symmetric"):
                bits = [8, 4] if grid == "power_of_two" else [2]
                options: dict[str, Any] = {"bits": bits, "grid": grid, "metric": metric}
                coarse = histogram if grid == "power_of_two" else _histogram(x, 8)
                ours = search_histogram(**coarse, **options)
                twins = reference.search_histogram(**coarse, **options)
                for a, b in zip(ours, twins, strict=True):
                    np.testing.assert_allclose(a.errors, b.errors, rtol=1e-6, err_msg=f"{name} {metric} {grid}")


def measure() -> list[Row]:
    """Times of whole searches, the share of Python included."""
    rows = []
    histograms = {name: _histogram(x) for name, x in _data(1_000_000).items()}
    for name, histogram in histograms.items():
        calls = {
            label: lambda h=histogram, o=options: search_histogram(**h, bits=[8], grid="symmetric", **o)
            for label, options in METRICS.items()
        }
        for label, seconds in time_in_turns(calls).items():
            rows.append(limit(f"{name}, symmetric, 8 bits, every bin edge, {label}", seconds, at_most_ms=1.0))
        others = {
            f"{name}, power of two, 8 bits, mse": lambda h=histogram: search_histogram(
                **h, bits=[8], grid="power_of_two", metric="mse"
            ),
            f"{name}, uniform, 8 bits, mse": lambda h=histogram: search_histogram(
                **h, bits=[8], grid="uniform", metric="mse"
            ),
        }
        rows += [limit(label, seconds, at_most_ms=1.0) for label, seconds in time_in_turns(others).items()]
        everything = {
            "all": lambda h=histogram: [
                search_histogram(**h, bits=WIDTHS, grid="symmetric", **options) for options in METRICS.values()
            ]
        }
        seconds = time_in_turns(everything)["all"]
        rows.append(limit(f"{name}, symmetric, five metrics x 8, 4, 2 bits", seconds, at_most_ms=20.0))
    rows += _across_instruction_sets(histograms["unsigned"])
    times = time_in_turns(
        {
            "detent": lambda: search_histogram(**histograms["unsigned"], bits=[8], grid="symmetric", metric="mse"),
            "NumPy on bin centres": lambda: _plain_numpy(histograms["unsigned"], 8),
        },
        rounds=3,
        warmups=0,
    )
    rows.append(compare("unsigned, symmetric, 8 bits, mse", times, "detent", "NumPy on bin centres"))
    return rows


def _across_instruction_sets(histogram: dict[str, Any]) -> list[Row]:
    rows = []
    before = _core.active_isa()
    try:
        for isa in _core.available_isas():
            _core.set_isa(isa)
            times = time_in_turns(
                {isa: lambda: search_histogram(**histogram, bits=[8], grid="symmetric", metric="mse")}
            )
            rows.append(limit(f"unsigned, symmetric, 8 bits, mse, {isa}", times[isa]))
    finally:
        _core.set_isa(before)
    return rows
