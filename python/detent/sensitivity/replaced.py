"""Parts of a network with candidates in place of float: for each of several candidates one copy of the batch.

Copies follow each other along the batch axis, which is axis 0 then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import detent.graph.operators  # noqa: F401  (registers torch.ops.detent)
from detent.graph import GraphNode
from detent.graph.roles import argument, argument_names
from detent.records.grid import Grid
from detent.sensitivity.candidates import KernelChange

__all__ = ["Changed", "Repeated", "Rounded", "WithKernel"]


class Repeated(nn.Module):
    """A float value for every candidate."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self._copies = copies

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The value as often as there are candidates."""
        return torch.cat([value] * self._copies)


class Rounded(nn.Module):
    """A value rounded on the grid of every candidate.

    Args:
        grids: the candidates.
        copied: whether the value is there for each of them already.
    """

    def __init__(self, grids: Sequence[Grid], *, copied: bool) -> None:
        super().__init__()
        self._copied = copied
        self._calls = [_rounding(grid) for grid in grids]

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The rounded values, one after the other."""
        parts = _parts(value, len(self._calls), self._copied)
        return _joined([function(part, *rest) for part, (function, rest) in zip(parts, self._calls, strict=True)])


class WithKernel:
    """A layer that runs with any kernel, and adds to its output channels.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: GraphNode) -> None:
        assert layer.op is not None
        assert layer.op.weight is not None
        self._function: Any = layer.node.target
        self._axis = layer.channel_axis
        self.data = layer.op.data[0] if layer.op.data else argument_names(layer.node)[0]
        self.weight = layer.op.weight
        self.bias = layer.op.bias
        self.given = {name: argument(layer.node, name) for name in argument_names(layer.node)}

    def run(
        self, data: torch.Tensor, kernel: torch.Tensor, shift: torch.Tensor | None, others: Mapping[str, Any]
    ) -> torch.Tensor:
        """The output.

        Args:
            data: the layer's input.
            kernel: its kernel.
            shift: what is added to each output channel, `[channels]`.
            others: its other arguments by name.
        """
        output: torch.Tensor = self._function(**{**others, self.data: data, self.weight: kernel})
        if shift is not None:
            output.add_(shift.reshape([-1 if i == self._axis else 1 for i in range(output.dim())]))
        return output


class Changed(nn.Module):
    """A layer with the kernel of every candidate, and what it adds to the output channels.

    Args:
        layer: the layer.
        kernel: its float kernel, in the memory format it is used in.
        changes: the candidates.
        copied: whether the layer's input is there for each of them already.
    """

    def __init__(
        self, layer: GraphNode, kernel: torch.Tensor, changes: Sequence[KernelChange], *, copied: bool
    ) -> None:
        super().__init__()
        self._layer = WithKernel(layer)
        self._copied = copied
        self._kernels = [torch.empty_like(kernel).copy_(kernel + change.kernel) for change in changes]
        shifts = [change.shifts.get(layer.name) for change in changes]
        self._shifts = [None if shift is None else torch.tensor(shift) for shift in shifts]

    def forward(self, data: torch.Tensor, **others: Any) -> torch.Tensor:
        """The outputs, one after the other, from the layer's input and its other arguments by name."""
        parts = _parts(data, len(self._kernels), self._copied)
        every = zip(parts, self._kernels, self._shifts, strict=True)
        return _joined([self._layer.run(part, kernel, shift, others) for part, kernel, shift in every])


def _rounding(grid: Grid) -> tuple[Any, tuple[Any, ...]]:
    """The operator that rounds on a grid, and its arguments behind the value."""
    scale = torch.from_numpy(grid.scale)
    if grid.table is not None:
        return torch.ops.detent.lut_fake_quantize.default, (scale, torch.tensor(grid.table), grid.axis)
    zero_point = torch.from_numpy(grid.zero_point)
    return (
        torch.ops.detent.fake_quantize.default,
        (scale, zero_point, grid.qmin, grid.qmax, grid.axis, grid.group_size),
    )


def _parts(value: torch.Tensor, count: int, copied: bool) -> Sequence[torch.Tensor]:
    return value.chunk(count) if copied and count > 1 else [value] * count


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
