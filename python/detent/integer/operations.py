"""Operations of integer programs: codes in, codes out, each with all it needs to run.

How exact sums become codes is a rule of the runtime (`detent.kernels.requantize`), which each operation holds. With
`"float"` it is the arithmetic of onnxruntime's integer kernels, otherwise that of TensorFlow Lite's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detent.integer import fixed_point
from detent.kernels.integer_moves import integer_gather, integer_look_up
from detent.kernels.integer_products import integer_conv, integer_linear
from detent.kernels.integer_sum import integer_sum, integer_value_sum
from detent.kernels.quantize import quantize
from detent.kernels.requantize import Requantization, Rule, requantize

__all__ = [
    "Average",
    "CodeGrid",
    "Concatenate",
    "Convolution",
    "LinearLayer",
    "MaximumPool",
    "Move",
    "Operation",
    "Product",
    "QuantizeInput",
    "Sum",
    "Table",
    "Window",
]

Codes = npt.NDArray[Any]
Extremes = tuple[int, int]

_LARGEST: Final = {"uint8": 255, "int8": 127, "uint16": 65535, "int16": 32767}


@dataclass(frozen=True, kw_only=True)
class CodeGrid:
    """The grid of a tensor of codes: a value is `(code - zero_point) * scale`.

    Args:
        scale: a float32 number.
        zero_point: code of zero.
        lowest: code.
        highest: code.
        storage: type that holds the codes: uint8, int8, uint16 or int16.
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int
    storage: str

    @classmethod
    def of(cls, scale: float, zero_point: int, lowest: int, highest: int) -> CodeGrid:
        """A grid whose codes are held by the narrowest type that has them."""
        names = ("uint8", "uint16") if lowest >= 0 else ("int8", "int16")
        storage = next(name for name in names if highest <= _LARGEST[name])
        return cls(scale=scale, zero_point=zero_point, lowest=lowest, highest=highest, storage=storage)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the codes."""
        return np.dtype(self.storage)

    @property
    def whole(self) -> CodeGrid:
        """The same with all codes that the type has."""
        ends = np.iinfo(self.dtype)
        return replace(self, lowest=int(ends.min), highest=int(ends.max))

    def codes(self, values: npt.NDArray[np.float32]) -> Codes:
        """Codes of values, rounded half to even."""
        scale, zero = np.array([self.scale], np.float32), np.array([self.zero_point], np.int32)
        dense = np.ascontiguousarray(values, np.float32)
        return quantize(dense, scale, zero, self.lowest, self.highest, dtype=self.dtype.name)

    def centred(self, codes: Codes) -> npt.NDArray[np.int64]:
        """Codes less the zero point."""
        return codes.astype(np.int64) - self.zero_point

    def values(self, codes: Codes) -> npt.NDArray[np.float32]:
        """Values of codes, float32."""
        found: npt.NDArray[np.float32] = (codes.astype(np.int32) - np.int32(self.zero_point)).astype(np.float32)
        found *= np.float32(self.scale)
        return found

    def clipped(self, numbers: npt.NDArray[Any]) -> Codes:
        """Codes of whole numbers of steps."""
        ends = self.lowest - self.zero_point, self.highest - self.zero_point
        found: Codes = (np.clip(numbers, *ends) + self.zero_point).astype(self.dtype)
        return found

    def is_within(self, other: CodeGrid) -> bool:
        """Whether codes are codes of the other grid as they are."""
        alike = (self.scale, self.zero_point, self.dtype) == (other.scale, other.zero_point, other.dtype)
        return alike and other.lowest <= self.lowest and self.highest <= other.highest

    def clamped(self, lower: float, upper: float) -> CodeGrid:
        """The same with the codes of values in `lower..upper` only."""
        limits = np.array([lower, upper], np.float32)
        low, high = (int(code) for code in self.codes(limits))
        return replace(self, lowest=low, highest=high)

    def requantization(self, rule: Rule, factors: npt.NDArray[np.float64]) -> Requantization:
        """What accumulators become with factors `[1]` or `[channels]`."""
        return Requantization.of(
            rule,
            factors,
            zero_point=self.zero_point,
            lowest=self.lowest,
            highest=self.highest,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One step of a program.

    Args:
        inputs: names of the tensors it reads.
        output: name of the tensor it writes.
        grid: of the codes it writes.
    """

    inputs: tuple[str, ...]
    output: str
    grid: CodeGrid

    @abstractmethod
    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """Codes; and the least and the greatest accumulator where there are some."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizeInput(Operation):
    """Values of an input of the network, float32, to codes.

    Args:
        ties_away: rounded half away from zero, else half to even.
    """

    ties_away: bool = False

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        if inputs[0].dtype != np.float32:
            raise ValueError(f"{self.inputs[0]} must have dtype float32, got {inputs[0].dtype}")
        if not self.ties_away:
            return self.grid.codes(inputs[0]), None
        steps = (inputs[0] / np.float32(self.grid.scale)).astype(np.float64)
        return self.grid.clipped(np.trunc(steps + np.copysign(0.5, steps))), None


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution(Operation):
    """A convolution along one or two axes.

    Args:
        kernel: int16 codes without zero points, `[outputs, inputs of a group, height, width]`.
        scales: float32, of the kernel, `[1]` or `[outputs]`.
        bits: of the kernel's codes.
        bias: int64 `[outputs]`.
        factors: float64, (input step) x (kernel step) / (output step), `[1]` or `[outputs]`.
        rule: by which accumulators become codes.
        source: grid of the input.
        stride: of rows and columns.
        before: padded rows above and columns on the left.
        after: below and on the right.
        dilation: of rows and columns.
        groups: of channels.
        spread: rows and columns of the input lie so far apart, with zeros between them; of transposed convolutions.
        single: the input has columns only, `[samples, channels, width]`.
    """

    kernel: npt.NDArray[np.int16]
    scales: npt.NDArray[np.float32]
    bits: int
    bias: npt.NDArray[np.int64]
    factors: npt.NDArray[np.float64]
    rule: Rule
    source: CodeGrid
    stride: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    spread: tuple[int, int] = (1, 1)
    single: bool = False

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        x = np.ascontiguousarray(inputs[0])
        found, extremes = integer_conv(
            self._spread(x[:, :, None, :] if self.single else x),
            self.kernel,
            self.grid.requantization(self.rule, self.factors),
            self.grid.dtype,
            zero_point=self.source.zero_point,
            bias=self.bias,
            stride=self.stride,
            before=self.before,
            after=self.after,
            dilation=self.dilation,
            groups=self.groups,
        )
        return found[:, :, 0, :] if self.single else found, extremes

    def _spread(self, x: Codes) -> Codes:
        if self.spread == (1, 1):
            return x
        (rows, columns), (height, width) = self.spread, x.shape[2:]
        sizes = (height - 1) * rows + 1, (width - 1) * columns + 1
        found = np.full((*x.shape[:2], *sizes), self.source.zero_point, x.dtype)
        found[:, :, ::rows, ::columns] = x
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearLayer(Operation):
    """A linear layer over the last axis.

    Args:
        kernel: int16 codes without zero points, `[outputs, inputs]`.
        scales: float32, of the kernel, `[1]` or `[outputs]`.
        bits: of the kernel's codes.
        bias: int64 `[outputs]`.
        factors: float64, `[1]` or `[outputs]`.
        rule: by which accumulators become codes.
        source: grid of the input.
    """

    kernel: npt.NDArray[np.int16]
    scales: npt.NDArray[np.float32]
    bits: int
    bias: npt.NDArray[np.int64]
    factors: npt.NDArray[np.float64]
    rule: Rule
    source: CodeGrid

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        x = np.ascontiguousarray(inputs[0])
        how = self.grid.requantization(self.rule, self.factors)
        rows = x.reshape(-1, x.shape[-1])
        found, extremes = integer_linear(
            rows, self.kernel, how, self.grid.dtype, zero_point=self.source.zero_point, bias=self.bias
        )
        return found.reshape(*x.shape[:-1], -1), extremes


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum(Operation):
    """A sum of two tensors, or a difference.

    onnxruntime's kernel, `QLinearAdd`, takes two fused steps: `a * r_a + (b * r_b + rest)` with ratios of the scales
    and what zero points leave, all of it in float32. Where no such kernel applies, values are added and rounded anew.

    Args:
        sources: grids of the inputs.
        negative: the second one is subtracted.
        fused: by the kernel; not behind padding, slices and the like, and not for differences.
        fixed_point: computed with whole numbers instead, as TensorFlow Lite does.
    """

    sources: tuple[CodeGrid, CodeGrid]
    negative: bool = False
    fused: bool = True
    fixed_point: bool = False

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        (a, b), (first, second), grid = inputs, self.sources, self.grid
        zero = np.float32(grid.zero_point)
        if self.fixed_point:
            left, right = first.centred(a), second.centred(b)
            scales = (first.scale, second.scale, grid.scale)
            bits = 8 * grid.dtype.itemsize
            return grid.clipped(fixed_point.total(left, -right if self.negative else right, scales, bits)), None
        a, b = (np.ascontiguousarray(one) for one in np.broadcast_arrays(a, b))
        ends = {"lowest": grid.lowest, "highest": grid.highest}
        if not self.fused or self.negative:
            scales = first.scale, -second.scale if self.negative else second.scale, grid.scale
            zeros = first.zero_point, second.zero_point, grid.zero_point
            return integer_value_sum(a, b, grid.dtype, scales=scales, zero_points=zeros, **ends), None
        by_a, by_b = (np.float32(one.scale) / np.float32(grid.scale) for one in self.sources)
        lost = by_a * np.float32(first.zero_point) + by_b * np.float32(second.zero_point)
        given: dict[str, Any] = {"factor_a": float(by_a), "factor_b": float(by_b), "rest": float(zero - lost)}
        return integer_sum(a, b, grid.dtype, **given, **ends), None


@dataclass(frozen=True, kw_only=True, eq=False)
class Product(Operation):
    """A product of two tensors, element by element.

    Args:
        sources: grids of the inputs.
        fixed_point: with a whole number as factor, as TensorFlow Lite has it; else a float32 one.
    """

    sources: tuple[CodeGrid, ...]
    fixed_point: bool = False

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        a, b = (source.centred(codes) for codes, source in zip(inputs, self.sources, strict=True))
        if self.fixed_point:
            scales = (self.sources[0].scale, self.sources[1].scale, self.grid.scale)
            return self.grid.clipped(fixed_point.product(a, b, scales)), None
        scale = np.float32(self.sources[0].scale) * np.float32(self.sources[1].scale) / np.float32(self.grid.scale)
        return self.grid.clipped(np.rint((a * b).astype(np.float32) * scale)), None


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
    """

    source: CodeGrid
    window: Window | None = None
    axes: tuple[int, ...] = ()
    keep: bool = False
    counts: npt.NDArray[np.int64]
    fixed_point: bool = False

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Table(Operation):
    """A function of single values: for each code of the input the code of the result.

    Args:
        table: codes, from the lowest code of the input's type on.
        function: name of the operator.
        slope: of values below zero, where the function has one.
    """

    table: Codes
    function: str
    slope: float = 0.0

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        return integer_look_up(np.ascontiguousarray(inputs[0]), self.table), None


@dataclass(frozen=True, kw_only=True, eq=False)
class Concatenate(Operation):
    """Tensors of one grid side by side.

    Args:
        axis: along which.
    """

    axis: int

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        return np.concatenate(inputs, axis=self.axis), None


@dataclass(frozen=True, kw_only=True, eq=False)
class Move(Operation):
    """Codes of each sample in other places: reshaping, slicing, permuting, padding, repeating and the like.

    Args:
        places: int64, where in a flattened sample each code comes from; -1 for zero. None leaves them in order.
        shape: of a sample of the result.
    """

    places: npt.NDArray[np.int64] | None
    shape: tuple[int, ...]

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        (x,) = inputs
        if self.places is None:
            return x.reshape(len(x), *self.shape), None
        flat = np.ascontiguousarray(x).reshape(len(x), -1)
        moved = integer_gather(flat, self.places, fill=self.grid.zero_point)
        return moved.reshape(len(x), *self.shape), None


def worst_accumulator(kernel: npt.NDArray[np.int16], bias: npt.NDArray[np.int64], source: CodeGrid) -> int:
    """No accumulator of a layer is larger in magnitude, whatever its input."""
    rows = kernel.reshape(len(kernel), -1).astype(np.int64)
    ends: Sequence[int] = (source.lowest - source.zero_point, source.highest - source.zero_point)
    highest = np.maximum(rows * ends[0], rows * ends[1]).sum(axis=1) + bias
    lowest = np.minimum(rows * ends[0], rows * ends[1]).sum(axis=1) + bias
    return int(max(highest.max(initial=0), -lowest.min(initial=0)))
