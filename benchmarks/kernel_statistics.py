"""Statistics: extremes, moments and histogram in one read, against a histogram alone by NumPy and torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from detent.kernels import statistics
from detent.kernels.reference import statistics as twin
from harness import Row, compare, rate, time_in_turns

TITLE = "Statistics of 12.6 M float32 out of cache: min, max, sum, sum of squares, zeros and histogram in one read"

_SAMPLES, _CHANNELS, _SIDE = 64, 64, 56
_ELEMENTS = _SAMPLES * _CHANNELS * _SIDE * _SIDE


def _inputs() -> dict[str, npt.NDArray[np.float32]]:
    gauss = np.random.default_rng(0).standard_normal(_ELEMENTS, np.float32).reshape(_SAMPLES, _CHANNELS, _SIDE, _SIDE)
    return {"gaussian": gauss, "relu, half zeros": np.maximum(gauss, 0)}


def _collect(x: npt.NDArray[np.float32], channel_axis: int | None = None) -> statistics.StatisticsAccumulator:
    accumulator = statistics.StatisticsAccumulator(channel_axis)
    accumulator.update(x)
    return accumulator


def verify() -> None:
    """The first samples against the twin; the whole tensor against NumPy."""
    for x in _inputs().values():
        for axis in (None, 1):
            ours, theirs = _collect(x[:1], axis).state(), twin.StatisticsAccumulator(axis)
            theirs.update(x[:1])
            for name, expected in theirs.state().items():
                np.testing.assert_array_equal(ours[name], expected, err_msg=name)
        whole = _collect(x)
        edges = np.ldexp(np.arange(len(whole.counts) + 1) + float(whole.first_bin), whole.exponent)
        np.testing.assert_array_equal(whole.counts, np.histogram(x, edges)[0])
        assert (whole.minimum, whole.maximum) == (x.min(), x.max())
        np.testing.assert_allclose(
            [whole.mean, whole.std], [x.mean(dtype=np.float64), x.std(dtype=np.float64)], rtol=1e-9
        )


def measure() -> list[Row]:
    """Per tensor on two distributions, then with channels in both memory formats."""
    rows: list[Row] = []
    for name, x in _inputs().items():
        bins = len(_collect(x).counts)
        tensor, copy = torch.from_numpy(x), np.empty_like(x)
        times = time_in_turns(
            {
                "detent": lambda x=x: _collect(x),
                "numpy.histogram": lambda x=x, bins=bins: np.histogram(x, bins),
                "torch.histc": lambda tensor=tensor, bins=bins: torch.histc(tensor, bins),
                "memcpy": lambda x=x, copy=copy: np.copyto(copy, x),
            },
            rounds=5,
        )
        rows += [
            rate(name, times["detent"], x.size, at_least=1.2, note=f"{bins} bins"),
            compare(name, times, "detent", "numpy.histogram", at_least=6, note="same bins, histogram only"),
            compare(name, times, "detent", "torch.histc", at_least=5, note="same bins, histogram only"),
            compare(name, times, "detent", "memcpy"),
        ]
    x = _inputs()["relu, half zeros"]
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    pooled = np.ascontiguousarray(x.reshape(_SAMPLES, -1, 7, 7))
    for name, array in {"channels first": x, "channels last": last, "channels first, 7x7": pooled}.items():
        times = time_in_turns({"detent": lambda array=array: _collect(array, 1)}, rounds=5)
        rows.append(rate(f"with channels' extremes and means, {name}", times["detent"], array.size))
    return rows
