"""Operations on windows of codes, and means over axes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from detent.integer import fixed_point
from detent.integer.code_grid import CodeGrid
from detent.integer.operations import Codes, Extremes, Operation
from detent.kernels.requantize import requantize

__all__ = ["Average", "MaximumPool", "Window"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where a window slides over the last axes.

    Args:
        size: of the window, along each of these axes.
        stride: likewise.
        before: padded entries before the first one.
        after: padded entries behind the last one.
        dilation: distance of entries in the window.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]

    def of(self, values: npt.NDArray[Any], fill: int) -> npt.NDArray[Any]:
        """A view `[..., positions, entries of the window]`."""
        rank = len(self.size)
        ends = [(0, 0)] * (values.ndim - rank) + list(zip(self.before, self.after, strict=True))
        padded = np.pad(values, ends, constant_values=fill)
        reach = tuple((size - 1) * step + 1 for size, step in zip(self.size, self.dilation, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(-rank, 0)))
        steps = [slice(None, None, step) for step in (*self.stride, *self.dilation)]
        index: Any = (Ellipsis, *steps)
        found: npt.NDArray[Any] = windows[index]
        return found

    def entries(self, windows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """What `of` gave, entry by entry of the window: NumPy is slow along axes as short as these."""
        places: list[Any] = [(Ellipsis, *place) for place in np.ndindex(*self.size)]
        return [windows[place] for place in places]


@dataclass(frozen=True, kw_only=True, eq=False)
class MaximumPool(Operation):
    """The greatest code of each window."""

    window: Window

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        (x,) = inputs
        windows = self.window.of(x, int(np.iinfo(x.dtype).min))
        return np.ascontiguousarray(reduce(np.maximum, self.window.entries(windows))), None


@dataclass(frozen=True, kw_only=True, eq=False)
class Average(Operation):
    """The mean of each window, or over some axes.

    Args:
        source: grid of the input.
        window: that slides, or None.
        axes: that are averaged over, without a window.
        keep: whether these axes stay, with one entry.
        counts: int64, entries averaged for each position of the window, shaped to broadcast; or how many there are.
        fixed_point: with whole numbers, as TensorFlow Lite's `AVERAGE_POOL_2D` and `MEAN`; else in float32.
        factor: by which sums are multiplied as accumulators of layers are, by the rule `"int16x8"`, without a window;
            None finds it in the grids.
    """

    source: CodeGrid
    window: Window | None = None
    axes: tuple[int, ...] = ()
    keep: bool = False
    counts: npt.NDArray[np.int64]
    fixed_point: bool = False
    factor: float | None = None

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        (x,) = inputs
        if self.window is None:
            sums = x.sum(axis=self.axes, keepdims=self.keep, dtype=np.int64)
            sums = sums - self.source.zero_point * (x.size // max(1, sums.size))
        else:
            sums = sum(self.window.entries(self.window.of(self.source.centred(x), 0)))
        if self.fixed_point:
            return self._whole(sums)
        extremes = (int(sums.min()), int(sums.max())) if sums.size else (0, 0)
        if self.factor is not None:
            how = self.grid.requantization("int16x8", np.array([self.factor]))
            return requantize(np.ascontiguousarray(sums), how, self.grid.dtype), extremes
        factors = np.float32(self.source.scale) / (np.float32(self.grid.scale) * self.counts.astype(np.float32))
        if factors.size > 1:
            return self.grid.clipped(np.rint(sums.astype(np.float32) * factors)), extremes
        how = self.grid.requantization("float", factors.reshape(1).astype(np.float64))
        return requantize(np.ascontiguousarray(sums), how, self.grid.dtype), extremes

    def _whole(self, sums: npt.NDArray[np.int64]) -> tuple[Codes, Extremes]:
        zero, counts = self.source.zero_point, self.counts
        extremes = (int(sums.min()), int(sums.max())) if sums.size else (0, 0)
        if self.window is None:
            means = fixed_point.mean(sums, int(counts), (self.source.scale, self.grid.scale))
            return self.grid.clipped(means), extremes
        # On one grid: the mean of codes, zero points included.
        return self.grid.clipped(fixed_point.average_of_codes(sums + zero * counts, counts) - zero), extremes
