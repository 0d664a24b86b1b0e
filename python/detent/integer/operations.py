"""Operations of integer programs: codes in, codes out, each with all it needs to run.

How exact sums become codes is a rule of the runtime (`detent.kernels.requantize`), which each operation holds. With
`"float"` it is the arithmetic of onnxruntime's integer kernels, otherwise that of TensorFlow Lite's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from detent.integer import fixed_point
from detent.integer.code_grid import CodeGrid
from detent.integer.powers_of_two import aligned_total
from detent.kernels.integer_moves import integer_gather, integer_look_up
from detent.kernels.integer_products import integer_conv, integer_linear
from detent.kernels.integer_sum import integer_sum, integer_table_sum, integer_value_sum
from detent.kernels.requantize import Requantization, Rule, requantize

__all__ = [
    "Concatenate",
    "Convolution",
    "LinearLayer",
    "Move",
    "Operation",
    "Product",
    "QuantizeInput",
    "Sum",
    "SumRule",
    "Table",
]

Codes = npt.NDArray[Any]
Extremes = tuple[int, int]
SumRule = Literal["fused_float", "float", "double_rounding", "xnnpack", "aligned"]


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
        steps = inputs[0] / np.float32(self.grid.scale)
        even = np.rint(steps)
        # Exact: a number and the whole one next to it are close. Infinity is none.
        with np.errstate(invalid="ignore"):
            apart = steps - even
        even += ((apart == 0.5) & (steps > 0)).astype(np.float32) - ((apart == -0.5) & (steps < 0)).astype(np.float32)
        return self.grid.clipped(even), None


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
            self.ending,
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

    @cached_property
    def ending(self) -> Requantization:
        """What becomes of accumulators; found once, since a program runs many times."""
        return self.grid.requantization(self.rule, self.factors)

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

    @cached_property
    def ending(self) -> Requantization:
        """What becomes of accumulators."""
        return self.grid.requantization(self.rule, self.factors)

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        x = np.ascontiguousarray(inputs[0])
        rows = x.reshape(-1, x.shape[-1])
        found, extremes = integer_linear(
            rows, self.kernel, self.ending, self.grid.dtype, zero_point=self.source.zero_point, bias=self.bias
        )
        return found.reshape(*x.shape[:-1], -1), extremes


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum(Operation):
    """A sum of two tensors, or a difference.

    With rule `"fused_float"` it is onnxruntime's kernel `QLinearAdd`, which takes two fused steps:
    `a * r_a + (b * r_b + rest)` with ratios of the scales and what zero points leave, all of it in float32. Where that
    kernel does not apply, behind padding, slices and the like and for differences, `"float"` adds values and rounds
    anew. `"double_rounding"` is TensorFlow Lite's arithmetic of whole numbers, `"xnnpack"` that of XNNPACK, `"aligned"`
    that of Akida, where powers of two align what is added.

    Args:
        sources: grids of the inputs.
        negative: the second one is subtracted.
        rule: one of these.
    """

    sources: tuple[CodeGrid, CodeGrid]
    negative: bool = False
    rule: SumRule = "fused_float"

    def run(self, *inputs: Codes) -> tuple[Codes, Extremes | None]:
        """As `Operation`."""
        (a, b), (first, second), grid = inputs, self.sources, self.grid
        zero = np.float32(grid.zero_point)
        if self.rule in ("xnnpack", "aligned"):
            right = -second.centred(b) if self.negative else second.centred(b)
            total = aligned_total if self.rule == "aligned" else fixed_point.shifted_total
            return grid.clipped(total(first.centred(a), right, (first.scale, second.scale, grid.scale))), None
        if self.rule == "double_rounding":
            return self._of_terms(a, b), None
        a, b = (np.ascontiguousarray(one) for one in np.broadcast_arrays(a, b))
        ends = {"lowest": grid.lowest, "highest": grid.highest}
        if self.rule == "float":
            scales = first.scale, -second.scale if self.negative else second.scale, grid.scale
            zeros = first.zero_point, second.zero_point, grid.zero_point
            return integer_value_sum(a, b, grid.dtype, scales=scales, zero_points=zeros, **ends), None
        by_a, by_b = (np.float32(one.scale) / np.float32(grid.scale) for one in self.sources)
        lost = by_a * np.float32(first.zero_point) + by_b * np.float32(second.zero_point)
        given: dict[str, Any] = {"factor_a": float(by_a), "factor_b": float(by_b), "rest": float(zero - lost)}
        return integer_sum(a, b, grid.dtype, **given, **ends), None

    def _of_terms(self, a: Codes, b: Codes) -> Codes:
        tables, how = self._terms
        a, b = (np.ascontiguousarray(one) for one in np.broadcast_arrays(a, b))
        return requantize(integer_table_sum(a, b, *tables), how, self.grid.dtype)

    @cached_property
    def _terms(self) -> tuple[tuple[fixed_point.Table, fixed_point.Table], Requantization]:
        """What is added up for each code of both inputs, and what becomes of the sums."""
        first, second, grid = *self.sources, self.grid
        every, other = first.centred(first.every_code), second.centred(second.every_code)
        given = (first.scale, second.scale, grid.scale), 8 * grid.dtype.itemsize
        tables = fixed_point.terms(every, -other if self.negative else other, *given)
        how = fixed_point.of_terms(*given, zero_point=grid.zero_point, lowest=grid.lowest, highest=grid.highest)
        return tables, how


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
