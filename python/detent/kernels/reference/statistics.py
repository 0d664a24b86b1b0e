"""Twin of `detent.kernels.statistics`: the order of float64 additions, the bins and the state, spelled out.

Exact sums are Python integers in units of 2^-352; everything else follows `csrc/statistics/collect.h`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from detent.kernels.arrays import ArrayLike, as_array
from detent.kernels.statistics_state import HISTOGRAM_BITS, SUM_DIGITS, SUM_PLACES, State, check_state, exact_integer

__all__ = ["StatisticsAccumulator", "channel_range", "weighted_counts"]

LANES = 16
RUN = 4096
STRETCH = 32 * RUN
LEAST_PERIOD = 64
STRIPS = 8

_HALF = 1 << HISTOGRAM_BITS
_LOWEST_EXPONENT = -148 - HISTOGRAM_BITS

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


def _exact(value: float) -> int:
    """A double as an integer in units of 2^-352."""
    numerator, denominator = float(value).as_integer_ratio()
    assert (1 << SUM_PLACES) % denominator == 0
    return numerator * ((1 << SUM_PLACES) // denominator)


def _digits(total: int) -> Int64s:
    """Base 2^32, lowest first, the sign in the top digit."""
    digits = [(total >> 32 * i) & 0xFFFFFFFF for i in range(SUM_DIGITS - 1)]
    return np.array([*digits, total >> 32 * (SUM_DIGITS - 1)], np.int64)


def _add_lanes(values: Float64s, lanes: int, phase: int = 0) -> Float64s:
    """Sum values into lanes: value i goes to lane `(phase + i) % lanes`, in order; float64 `[lanes]`."""
    padded = np.zeros(-(-(phase + len(values)) // lanes) * lanes)
    padded[phase : phase + len(values)] = values
    total = np.zeros(lanes)
    for row in padded.reshape(-1, lanes):
        total = total + row
    return total


def _sum_run(values: Float64s) -> float:
    """Sixteen lanes, then pairwise with distance 8, 4, 2, 1."""
    lanes = _add_lanes(values, LANES)
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half : 2 * half]
    return float(lanes[0])


def _exponent_for(magnitude: float) -> int:
    """The least width 2^exponent at which 4096 bins reach beyond the magnitude."""
    return math.frexp(max(magnitude, 2.0**-149))[1] - HISTOGRAM_BITS


def _memory_order(x: npt.NDArray[Any]) -> list[int]:
    return sorted(range(x.ndim), key=lambda d: -x.strides[d])


def _split(x: npt.NDArray[Any], channel_axis: int | None) -> tuple[int, int]:
    """Channels and values per channel in a row, in memory order, of one sample."""
    if channel_axis is None:
        return 1, max(1, x.size)
    channels, inner = x.shape[channel_axis], 1
    order = [d for d in _memory_order(x) if x.shape[d] != 1]
    if channels == 1:
        return 1, max(1, x.size)
    for d in order[order.index(channel_axis) + 1 :]:
        inner *= x.shape[d]
    return channels, inner


class _Channels:
    """Least and greatest value, exact sum and number of NaN and infinities of each channel."""

    def __init__(self, channels: int) -> None:
        self.minimum = np.full(channels, np.inf, np.float32)
        self.maximum = np.full(channels, -np.inf, np.float32)
        self.sums = [0] * channels
        self.nonfinite = np.zeros(channels, np.int64)

    def merge(self, other: _Channels) -> None:
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        self.nonfinite = self.nonfinite + other.nonfinite

    def read(self, values: Float32s, inner: int) -> None:
        """One sample, in memory order."""
        channels = len(self.sums)
        channel = np.arange(len(values)) // inner % channels
        finite = np.isfinite(values)
        np.minimum.at(self.minimum, channel[finite], values[finite] + np.float32(0))
        np.maximum.at(self.maximum, channel[finite], values[finite] + np.float32(0))
        np.add.at(self.nonfinite, channel[~finite], 1)
        terms = np.where(finite, values, 0).astype(np.float64)
        if inner == 1 and channels > 1:
            period = -(-LEAST_PERIOD // channels) * channels
            for begin in range(0, len(terms), STRETCH):
                for lane, total in enumerate(_add_lanes(terms[begin : begin + STRETCH], period, begin % period)):
                    self.sums[lane % channels] += _exact(total)
            return
        # A piece ends where the channel or the run does.
        cuts = sorted({*range(0, len(terms), inner), *range(0, len(terms), RUN), len(terms)})
        for begin, end in itertools.pairwise(cuts):
            self.sums[int(channel[begin])] += _exact(_sum_run(terms[begin:end]))


class StatisticsAccumulator:
    """Statistics of one tensor; see `detent.kernels.statistics.StatisticsAccumulator`."""

    def __init__(self, channel_axis: int | None = None) -> None:
        self.channel_axis = channel_axis
        self.samples = 0
        self.count = 0
        self.zeros = 0
        self.nonfinite = 0
        self._minimum = np.float32(np.inf)
        self._maximum = np.float32(-np.inf)
        self._sum = 0
        self._sum_of_squares = 0
        self.exponent = _LOWEST_EXPONENT
        self._histogram = np.zeros(2 * _HALF, np.int64)
        self._channels: _Channels | None = None

    def update(self, x: ArrayLike, samples: int | None = None) -> None:
        """Take in the first `samples` rows of `x`, float32 `[samples, ...]`."""
        array = as_array(x)
        if self.channel_axis is not None and self.channel_axis % array.ndim == 0:
            rows = array[np.newaxis]  # the whole array is one sample
            axis: int | None = 0
        else:
            rows = array[: len(array) if samples is None else samples]
            axis = None if self.channel_axis is None else self.channel_axis % array.ndim - 1
        self.samples += len(rows)
        if self.channel_axis is not None and self._channels is None and rows.size:
            self._channels = _Channels(rows.shape[1 + axis] if axis is not None else 1)
        for sample in rows:
            self._read(sample, axis)

    def _read(self, sample: Float32s, axis: int | None) -> None:
        values = sample.transpose(_memory_order(sample)).ravel()
        finite = np.isfinite(values)
        terms = np.where(finite, values, 0).astype(np.float64)
        for begin in range(0, len(terms), RUN):
            run = terms[begin : begin + RUN]
            self._sum += _exact(_sum_run(run))
            self._sum_of_squares += _exact(_sum_run(run * run))
        if self._channels is not None:
            self._channels.read(values, _split(sample, axis)[1])
        self.nonfinite += int(np.sum(~finite))
        kept = values[finite] + np.float32(0)  # -0 becomes 0
        if not len(kept):
            return
        self.count += len(kept)
        self.zeros += int(np.sum(kept == 0))
        self._minimum = min(self._minimum, kept.min())
        self._maximum = max(self._maximum, kept.max())
        self._widen(_exponent_for(float(np.abs(kept).max())))
        bins = np.floor(np.ldexp(kept.astype(np.float64), -self.exponent)).astype(np.int64)
        np.add.at(self._histogram, bins + _HALF, 1)

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            bins = np.arange(-_HALF, _HALF) >> min(exponent - self.exponent, 31)
            wide = np.zeros_like(self._histogram)
            np.add.at(wide, bins + _HALF, self._histogram)
            self._histogram, self.exponent = wide, exponent

    def merge(self, other: StatisticsAccumulator) -> None:
        """Take in everything `other` has seen."""
        self.samples += other.samples
        self.count += other.count
        self.zeros += other.zeros
        self.nonfinite += other.nonfinite
        self._minimum = min(self._minimum, other._minimum)
        self._maximum = max(self._maximum, other._maximum)
        self._sum += other._sum
        self._sum_of_squares += other._sum_of_squares
        self._widen(other.exponent)
        narrow = StatisticsAccumulator()
        narrow.exponent, narrow._histogram = other.exponent, other._histogram
        narrow._widen(self.exponent)
        self._histogram = self._histogram + narrow._histogram
        if other._channels is not None:
            if self._channels is None:
                self._channels = _Channels(len(other._channels.sums))
            self._channels.merge(other._channels)

    def state(self) -> State:
        """Everything, as a flat dict of arrays."""
        state: State = {
            "samples": np.asarray(self.samples, np.int64),
            "count": np.asarray(self.count, np.int64),
            "zeros": np.asarray(self.zeros, np.int64),
            "nonfinite": np.asarray(self.nonfinite, np.int64),
            "minimum": np.asarray(self._minimum, np.float32),
            "maximum": np.asarray(self._maximum, np.float32),
            "sum_digits": _digits(self._sum),
            "sum_of_squares_digits": _digits(self._sum_of_squares),
            "exponent": np.asarray(self.exponent, np.int64),
            "first_bin": np.asarray(self.first_bin, np.int64),
            "counts": self.counts,
        }
        if self.channel_axis is not None:
            channels = self._channels or _Channels(0)
            state["channel_axis"] = np.asarray(self.channel_axis, np.int64)
            state["channel_minimum"] = channels.minimum
            state["channel_maximum"] = channels.maximum
            state["channel_nonfinite"] = channels.nonfinite
            digits = [_digits(total) for total in channels.sums]
            state["channel_sum_digits"] = np.array(digits, np.int64).reshape(-1, SUM_DIGITS)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> StatisticsAccumulator:
        """An accumulator that continues where `state` was taken."""
        checked = check_state(state)
        twin = cls(int(checked["channel_axis"]) if "channel_axis" in checked else None)
        for name in ("samples", "count", "zeros", "nonfinite", "exponent"):
            setattr(twin, name, int(checked[name]))
        twin._minimum, twin._maximum = checked["minimum"][()], checked["maximum"][()]
        twin._sum = exact_integer(checked["sum_digits"])
        twin._sum_of_squares = exact_integer(checked["sum_of_squares_digits"])
        first = int(checked["first_bin"]) + _HALF
        twin._histogram[first : first + len(checked["counts"])] = checked["counts"]
        if "channel_axis" in checked and len(checked["channel_minimum"]):
            channels = _Channels(0)
            channels.minimum, channels.maximum = checked["channel_minimum"], checked["channel_maximum"]
            channels.nonfinite = checked["channel_nonfinite"]
            channels.sums = [exact_integer(digits) for digits in checked["channel_sum_digits"]]
            twin._channels = channels
        return twin

    @property
    def minimum(self) -> float:
        """Least value; infinity before any value."""
        return float(self._minimum)

    @property
    def maximum(self) -> float:
        """Greatest value; -infinity before any value."""
        return float(self._maximum)

    @property
    def sum(self) -> float:
        """Exact sum, rounded once."""
        return self._sum / (1 << SUM_PLACES)

    @property
    def sum_of_squares(self) -> float:
        """Exact sum of squares, rounded once."""
        return self._sum_of_squares / (1 << SUM_PLACES)

    @property
    def mean(self) -> float:
        """`sum / count`."""
        return self.sum / self.count

    @property
    def variance(self) -> float:
        """Mean square distance from the mean, rounded once."""
        scaled = (self.count * self._sum_of_squares << SUM_PLACES) - self._sum**2
        return max(0.0, scaled / (self.count**2 << 2 * SUM_PLACES))

    @property
    def std(self) -> float:
        """Square root of the variance."""
        return math.sqrt(self.variance)

    @property
    def first_bin(self) -> int:
        """Index of the first occupied bin."""
        occupied = np.flatnonzero(self._histogram)
        return int(occupied[0]) - _HALF if len(occupied) else 0

    @property
    def counts(self) -> Int64s:
        """Values in each bin from the first occupied one to the last."""
        return np.trim_zeros(self._histogram)

    @property
    def channel_minimum(self) -> Float32s:
        """Least value of each channel."""
        return (self._channels or _Channels(0)).minimum

    @property
    def channel_maximum(self) -> Float32s:
        """Greatest value of each channel."""
        return (self._channels or _Channels(0)).maximum

    @property
    def channel_mean(self) -> Float64s:
        """Mean of each channel's finite values."""
        channels = self._channels or _Channels(0)
        counts = (self.count + self.nonfinite) // max(1, len(channels.sums)) - channels.nonfinite
        return np.array([total / (1 << SUM_PLACES) for total in channels.sums]) / counts


def channel_range(x: ArrayLike, axis: int) -> tuple[Float32s, Float32s, Float64s]:
    """Least value, greatest value and mean of each channel along any axis."""
    array = as_array(x)
    channels, inner = _split(array, axis % array.ndim)
    figures = _Channels(channels)
    figures.read(array.transpose(_memory_order(array)).ravel(), inner)
    if figures.nonfinite.any():
        raise ValueError("x holds NaN or infinite values")
    sums = np.array([total / (1 << SUM_PLACES) for total in figures.sums])
    return figures.minimum, figures.maximum, sums / (array.size // channels)


def weighted_counts(x: ArrayLike, weights: ArrayLike, exponent: int, first_bin: int, n_bins: int) -> Float64s:
    """Sum of the weights of the values in each bin."""
    values, factors = as_array(x), as_array(weights, "weights")
    order = _memory_order(values)
    places = np.ldexp(values.transpose(order).ravel().astype(np.float64), -exponent)
    flat = factors.transpose(order).ravel().astype(np.float64)
    with np.errstate(invalid="ignore"):
        inside = (np.floor(places) >= first_bin) & (np.floor(places) < first_bin + n_bins)
    if not np.all(inside & np.isfinite(flat) & (flat >= 0)):
        raise ValueError("a value outside the bins, or a weight that is negative or not finite")
    bins = np.floor(places).astype(np.int64) - first_bin
    total = np.zeros(n_bins)
    strip = -(-len(flat) // STRIPS)
    for begin in range(0, len(flat), max(1, strip)):
        # bincount adds in order.
        total = total + np.bincount(bins[begin : begin + strip], flat[begin : begin + strip], minlength=n_bins)
    return total
