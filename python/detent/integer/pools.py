"""Pools and means of a quantized model as integer operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.errors import UnsupportedOpError
from detent.graph.roles import argument, argument_names, first_argument, op_name
from detent.integer import moves
from detent.integer.arithmetic import Arithmetic
from detent.integer.code_grid import CodeGrid
from detent.integer.powers_of_two import to_bits
from detent.integer.windows import Average, MaximumPool, Window

__all__ = ["average", "maximum", "mean"]

Stored = Callable[[fx.Node], tuple[torch.Tensor, ...]]


def maximum(node: fx.Node, **ends: Any) -> MaximumPool:
    """A maximum pool that slides with a fixed window."""
    inner = moves.sample_shape(first_argument(node))
    axes = int(op_name(node)[len("max_pool")])
    return MaximumPool(window=_window(node, inner[-axes:], moves.sample_shape(node)[-axes:]), **ends)


def average(node: fx.Node, source: CodeGrid, stored: Stored, arithmetic: Arithmetic, ends: dict[str, Any]) -> Average:
    """An average pool with a sliding window, or an adaptive one whose windows are all alike.

    Raises:
        UnsupportedOpError: windows of an adaptive pool differ; or the runtime averages codes, and the result is on
            another grid than they are.
    """
    whole = arithmetic.fixed_point
    if whole and (source.scale, source.zero_point) != (ends["grid"].scale, ends["grid"].zero_point):
        raise UnsupportedOpError(
            "this runtime's average pools keep the grid of their input",
            remedy="quantize for target 'tflite', whose rules say so; or take a mean",
        )
    ends = {"source": source, "fixed_point": whole, **ends}
    inner, outer = (moves.sample_shape(one) for one in (first_argument(node), node))
    name = op_name(node)
    axes = int(name[name.index("avg_pool") + len("avg_pool")])
    inner, outer = inner[-axes:], outer[-axes:]
    if "adaptive" in name:
        if any(size % count for size, count in zip(inner, outer, strict=True)):
            raise UnsupportedOpError("an adaptive pool whose windows differ has no integer form")
        if set(outer) == {1} and not whole:
            return _of_all(inner, source, arithmetic, ends)
        steps = tuple(size // count for size, count in zip(inner, outer, strict=True))
        none = (0,) * axes
        window = Window(size=steps, stride=steps, before=none, after=none, dilation=(1,) * axes)
        _require_windows(arithmetic)
        return Average(window=window, counts=np.array(int(np.prod(steps)), np.int64), **ends)
    window = _window(node, inner, outer)
    if arithmetic.factor_bits is not None and (window.size, set(outer), set(window.before)) == (inner, {1}, {0}):
        return _of_all(inner, source, arithmetic, ends)
    _require_windows(arithmetic)
    return Average(window=window, counts=_counts(node, window, inner), **ends)


def mean(node: fx.Node, source: CodeGrid, stored: Stored, arithmetic: Arithmetic, ends: dict[str, Any]) -> Average:
    """A mean over axes of single samples.

    Raises:
        UnsupportedOpError: it is taken over samples too.
    """
    inner = moves.sample_shape(first_argument(node))
    given = argument(node, "dim") if "dim" in argument_names(node) else None
    axes = tuple(sorted(int(axis) % (len(inner) + 1) for axis in given or ()))
    if not axes or 0 in axes:
        raise UnsupportedOpError("a mean over samples has no integer form")
    count = np.array(int(np.prod([inner[axis - 1] for axis in axes])), np.int64)
    ends = {"source": source, "fixed_point": arithmetic.fixed_point, **ends}
    factor = _factor(count, source, arithmetic, ends)
    return Average(axes=axes, keep=bool(argument(node, "keepdim")), counts=count, factor=factor, **ends)


def _of_all(inner: tuple[int, ...], source: CodeGrid, arithmetic: Arithmetic, ends: dict[str, Any]) -> Average:
    """The average pool with one window, which has all entries."""
    axes, count = tuple(range(-len(inner), 0)), np.array(int(np.prod(inner)), np.int64)
    return Average(axes=axes, keep=True, counts=count, factor=_factor(count, source, arithmetic, ends), **ends)


def _factor(
    count: npt.NDArray[np.int64], source: CodeGrid, arithmetic: Arithmetic, ends: dict[str, Any]
) -> float | None:
    """From sums to codes, for runtimes whose factors have few bits."""
    if arithmetic.factor_bits is None:
        return None
    quotient = np.array(source.scale / (ends["grid"].scale * float(count)))
    return float(to_bits(quotient, arithmetic.factor_bits))


def _require_windows(arithmetic: Arithmetic) -> None:
    if arithmetic.factor_bits is not None:
        raise UnsupportedOpError(
            "this runtime averages over whole pictures, not over windows", remedy="take a mean over rows and columns"
        )


def _window(node: fx.Node, inner: tuple[int, ...], outer: tuple[int, ...]) -> Window:
    names = argument_names(node)

    def numbers(name: str, otherwise: Any) -> tuple[int, ...]:
        given = argument(node, name) if name in names else None
        found = otherwise if given is None or given == [] else given
        listed = [found] if isinstance(found, int) else list(found)
        return tuple(int(one) for one in (listed * len(inner) if len(listed) == 1 else listed))

    size = numbers("kernel_size", 1)
    stride, before, dilation = numbers("stride", size), numbers("padding", 0), numbers("dilation", 1)
    # What the last window reaches over, which is more than the padding where sizes are rounded up.
    after = tuple(
        max(0, (count - 1) * step + (one - 1) * spread + 1 - length - first)
        for count, step, one, spread, length, first in zip(outer, stride, size, dilation, inner, before, strict=True)
    )
    return Window(size=size, stride=stride, before=before, after=after, dilation=dilation)


def _counts(node: fx.Node, window: Window, inner: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """By how many each sum is divided."""
    names = argument_names(node)
    divisor = argument(node, "divisor_override") if "divisor_override" in names else None
    if divisor is not None:
        return np.array(int(divisor), np.int64)
    counted = np.ones(inner, np.int64)
    if argument(node, "count_include_pad"):
        padding = list(zip(window.before, window.before, strict=True))
        counted = np.pad(counted, padding, constant_values=1)
        rest = tuple(max(0, after - before) for before, after in zip(window.before, window.after, strict=True))
        whole = Window(
            size=window.size, stride=window.stride, before=(0,) * len(rest), after=rest, dilation=window.dilation
        )
    else:
        whole = window
    counts: npt.NDArray[np.int64] = whole.of(counted, 0).sum(axis=tuple(range(-len(inner), 0)))
    positions = counts.flat[0]
    return np.array(positions, np.int64) if bool(np.all(counts == positions)) else counts
