"""Statistics of a tensor in one read: extremes, exact sums and a histogram that merges without loss.

Bins are anchored at zero and a power of two wide, counts are integers and sums are exact, so the state depends only on
which samples were seen: not on batches, order, threads, merges or restarts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from detent import _core
from detent.kernels.arrays import ArrayLike, as_array
from detent.kernels.statistics_state import DTYPES, SUM_PLACES, State, check_state, exact_integer

__all__ = ["StatisticsAccumulator", "channel_range", "weighted_counts"]

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


class StatisticsAccumulator:
    """Statistics of one tensor, collected sample by sample.

    The histogram has 4096 bins `[i w, (i + 1) w)` on each side of zero, `w = 2**exponent` the least power of two for
    which they hold every value. NaN and infinities are only counted. Safe to use from several threads.

    Args:
        channel_axis: also keep least and greatest value and sum of each channel along this axis of the arrays. Axis 0
            makes the whole array one sample (a weight).
    """

    def __init__(self, channel_axis: int | None = None) -> None:
        self._channel_axis = channel_axis
        self._core = _core.StatisticsAccumulator(channel_axis)
        self._known: State | None = None

    def update(self, x: ArrayLike, samples: int | None = None) -> None:
        """Take in the first `samples` rows (default: all) of `x`, float32 `[samples, ...]`.

        Axes may come in any memory order as long as there are no gaps and samples are outermost.

        Raises:
            ValueError: wrong dtype or layout, `samples` out of range, or another number of channels than before.
            TypeError: not an array, or a tensor that requires grad or is not on the CPU.
        """
        self._core.update(as_array(x), samples)
        self._known = None

    def merge(self, other: StatisticsAccumulator) -> None:
        """Take in everything `other` has seen; associative and commutative to the last bit.

        Raises:
            ValueError: the channel axes or numbers of channels differ.
        """
        self._core.merge(other._core)
        self._known = None

    def copy(self) -> StatisticsAccumulator:
        """An independent accumulator that has seen the same."""
        twin = StatisticsAccumulator.__new__(StatisticsAccumulator)
        twin._channel_axis = self._channel_axis
        twin._core = self._core.copy()
        twin._known = None
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> StatisticsAccumulator:
        return self.copy()

    def state(self) -> State:
        """Everything, as a flat dict of arrays to be stored; equal for equal sets of samples, bit for bit."""
        return dict(self._current)

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> StatisticsAccumulator:
        """An accumulator that continues where `state` was taken.

        Raises:
            ValueError: a field is missing, unknown, of the wrong dtype or shape, or contradicts another.
        """
        checked = check_state(state)
        accumulator = cls.__new__(cls)
        axis = checked.get("channel_axis")
        accumulator._channel_axis = None if axis is None else int(axis)
        accumulator._core = _core.StatisticsAccumulator.from_state(accumulator._channel_axis, checked)
        accumulator._known = None
        return accumulator

    @property
    def _current(self) -> State:
        if self._known is None:
            known = {name: np.asarray(value, DTYPES[name]) for name, value in self._core.state().items()}
            if self._channel_axis is not None:
                known["channel_axis"] = np.asarray(self._channel_axis, np.int64)
            for value in known.values():
                value.setflags(write=False)
            self._known = known
        return self._known

    def _require_values(self) -> None:
        if not self.count:
            raise ValueError("no finite value has been counted yet")

    @property
    def channel_axis(self) -> int | None:
        """Axis of the channels; None if they are not told apart."""
        return self._channel_axis

    @property
    def samples(self) -> int:
        """Samples seen."""
        return self._core.samples

    @property
    def count(self) -> int:
        """Finite values seen."""
        return int(self._current["count"])

    @property
    def zeros(self) -> int:
        """Values that are exactly zero; `counts` has them in bin 0 too."""
        return int(self._current["zeros"])

    @property
    def nonfinite(self) -> int:
        """NaN and infinities seen; no other figure includes them."""
        return self._core.nonfinite

    @property
    def minimum(self) -> float:
        """Least value; infinity before any value."""
        return float(self._current["minimum"])

    @property
    def maximum(self) -> float:
        """Greatest value; -infinity before any value."""
        return float(self._current["maximum"])

    @property
    def sum(self) -> float:
        """Exact sum of the samples' float64 sums, rounded once."""
        return exact_integer(self._current["sum_digits"]) / (1 << SUM_PLACES)

    @property
    def sum_of_squares(self) -> float:
        """Exact sum of the samples' float64 sums of squares, rounded once."""
        return exact_integer(self._current["sum_of_squares_digits"]) / (1 << SUM_PLACES)

    @property
    def mean(self) -> float:
        """`sum / count`.

        Raises:
            ValueError: nothing has been counted.
        """
        self._require_values()
        return self.sum / self.count

    @property
    def variance(self) -> float:
        """Mean square distance from the mean, from the exact sums without cancellation.

        Raises:
            ValueError: nothing has been counted.
        """
        self._require_values()
        n = self.count
        total = exact_integer(self._current["sum_digits"])
        squares = exact_integer(self._current["sum_of_squares_digits"])
        return max(0.0, ((n * squares << SUM_PLACES) - total * total) / (n * n << 2 * SUM_PLACES))

    @property
    def std(self) -> float:
        """Square root of the variance.

        Raises:
            ValueError: nothing has been counted.
        """
        return float(np.sqrt(self.variance))

    @property
    def exponent(self) -> int:
        """Bins of the histogram are `2**exponent` wide."""
        return int(self._current["exponent"])

    @property
    def first_bin(self) -> int:
        """Index of the first occupied bin; bin i covers `[i w, (i + 1) w)`, `w = 2**exponent`."""
        return int(self._current["first_bin"])

    @property
    def counts(self) -> Int64s:
        """Values in each bin from the first occupied one to the last, int64 `[n]`; empty before any value."""
        return self._current["counts"]

    def _channel(self, name: str) -> npt.NDArray[Any]:
        if self._channel_axis is None:
            raise ValueError("these statistics do not tell channels apart; construct them with a `channel_axis`")
        return self._current[name]

    @property
    def channel_minimum(self) -> Float32s:
        """Least value of each channel, float32 `[channels]`.

        Raises:
            ValueError: channels are not told apart.
        """
        return self._channel("channel_minimum")

    @property
    def channel_maximum(self) -> Float32s:
        """Greatest value of each channel, float32 `[channels]`.

        Raises:
            ValueError: channels are not told apart.
        """
        return self._channel("channel_maximum")

    @property
    def channel_mean(self) -> Float64s:
        """Mean of each channel's finite values, float64 `[channels]`: exact sums, rounded once, over counts.

        Raises:
            ValueError: channels are not told apart, or one has no finite value.
        """
        nonfinite = self._channel("channel_nonfinite")
        counts = (self.count + self.nonfinite) // max(1, len(nonfinite)) - nonfinite
        if not counts.all():
            raise ValueError("no finite value has been counted yet in some channel")
        means: Float64s = _core.exact_values(self._channel("channel_sum_digits")) / counts
        return means


def channel_range(x: ArrayLike, axis: int) -> tuple[Float32s, Float32s, Float64s]:
    """Least value, greatest value and mean of each channel of a dense float32 array along any axis.

    Returns:
        float32, float32 and float64 `[channels]`; means are exact sums, rounded once, over counts.

    Raises:
        ValueError: wrong dtype or layout, no values, NaN or infinity, or no such axis.
        TypeError: not an array, or a tensor that requires grad or is not on the CPU.
    """
    return _core.channel_range(as_array(x), axis)


def weighted_counts(x: ArrayLike, weights: ArrayLike, exponent: int, first_bin: int, n_bins: int) -> Float64s:
    """Sum of the weights of the values in each bin `[(first_bin + i) w, (first_bin + i + 1) w)`, `w = 2**exponent`.

    The order of adding is fixed: memory order within eight equal strips of the array, then strip by strip.

    Args:
        x: float32, any dense shape.
        weights: float32, same shape and memory order, finite and not negative.
        exponent: -160 to 116.
        first_bin: index of the first bin.
        n_bins: number of bins, 1 to 65536.

    Returns:
        float64 `[n_bins]`.

    Raises:
        ValueError: wrong dtype or layout, a value outside the bins, or a weight that is negative or not finite.
        TypeError: not an array, or a tensor that requires grad or is not on the CPU.
    """
    return _core.weighted_counts(as_array(x), as_array(weights, "weights"), exponent, first_bin, n_bins)
