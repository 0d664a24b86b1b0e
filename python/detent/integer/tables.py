"""Functions of single values as tables: for each code of the input the code of the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from detent.errors import UnsupportedOpError
from detent.graph.roles import argument, argument_names, op_name
from detent.integer.arithmetic import Arithmetic
from detent.integer.code_grid import CodeGrid
from detent.integer.fixed_functions import FIXED_FUNCTIONS, PRESCRIBED
from detent.integer.operations import Table

__all__ = ["fixed", "requantizing", "table"]

Stored = Callable[[fx.Node], tuple[torch.Tensor, ...]]
_WIDE_FUNCTIONS = frozenset({"leaky_relu", "relu", "requantize"})


def table(
    node: fx.Node, operand: fx.Node, source: CodeGrid, stored: Stored, arithmetic: Arithmetic, ends: dict[str, Any]
) -> Table:
    """An operator that makes one value of one, the others of its operands being stored numbers.

    Raises:
        UnsupportedOpError: a stored operand has a number for each channel, or the runtime has no integer kernel for it.
    """
    name = op_name(node)
    if arithmetic.functions == "fixed_point":
        slope = float(argument(node, "negative_slope")) if "negative_slope" in argument_names(node) else 0.0
        return fixed(name, source, ends, negative_slope=slope)

    def stand_in(one: fx.Node) -> Any:
        if one is operand:
            return values
        number = stored(one)[0]
        if number.numel() > 1:
            raise UnsupportedOpError(f"{name} with numbers for channels has no integer form yet")
        return number.reshape(())

    values = torch.from_numpy(source.values(source.every_code))
    args, kwargs = fx.map_arg((node.args, node.kwargs), stand_in)
    found: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    codes = ends["grid"].codes(np.ascontiguousarray(found.detach().numpy()))
    return Table(table=codes, function=name, **ends)


def requantizing(source: CodeGrid, arithmetic: Arithmetic, ends: dict[str, Any]) -> Table:
    """The same values on another grid."""
    if arithmetic.fixed_point:
        return fixed("requantize", source, ends)
    return Table(table=ends["grid"].codes(source.values(source.every_code)), function="requantize", **ends)


def fixed(name: str, source: CodeGrid, ends: dict[str, Any], *, negative_slope: float = 0.0) -> Table:
    """A function as the runtime computes it on codes, by name.

    Raises:
        UnsupportedOpError: the runtime has no integer kernel for it, or gives its result on another grid.
    """
    grid: CodeGrid = ends["grid"]
    wide = max(source.dtype.itemsize, grid.dtype.itemsize) > 1
    if name not in FIXED_FUNCTIONS or (wide and name not in _WIDE_FUNCTIONS):
        raise UnsupportedOpError(
            f"the runtime has no integer kernel for {name}" + (" of 16-bit codes" if wide else ""),
            remedy=f"it has these: {', '.join(sorted(_WIDE_FUNCTIONS if wide else FIXED_FUNCTIONS))}",
        )
    given = PRESCRIBED.get(name)
    if given is not None and (given.scale, given.zero_point) != (grid.scale, grid.zero_point):
        raise UnsupportedOpError(
            f"the runtime gives {name} with step {given.scale:g} and zero point {given.zero_point}, whatever its grid",
            remedy="quantize for target 'tflite', whose rules say so",
        )
    if name == "leaky_relu" and not negative_slope > 0:
        raise UnsupportedOpError(f"the runtime's leaky_relu takes slopes above 0, not {negative_slope:g}")
    centred = source.centred(source.every_code)
    numbers = FIXED_FUNCTIONS[name](centred, source.scale, grid.scale, negative_slope=negative_slope)
    return Table(table=grid.clipped(numbers), function=name, slope=negative_slope, **ends)
