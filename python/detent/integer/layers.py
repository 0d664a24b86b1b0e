"""Convolutions and linear layers of a quantized model as integer operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from detent.errors import UnsupportedOpError
from detent.graph.roles import argument, op_name, role_of
from detent.integer.arithmetic import Arithmetic
from detent.integer.code_grid import CodeGrid
from detent.integer.operations import Convolution, LinearLayer
from detent.integer.powers_of_two import to_bits
from detent.kernels.requantize import Rule

__all__ = ["convolution", "linear", "transposed_convolution"]

Stored = Callable[[fx.Node], tuple[torch.Tensor, ...]]
_LARGEST_CODE: Final = 2**15 - 1


def convolution(
    node: fx.Node, source: CodeGrid, stored: Stored, arithmetic: Arithmetic, ends: dict[str, Any]
) -> Convolution:
    """A convolution along one or two axes.

    Raises:
        UnsupportedOpError: it runs along three, or its kernel has no integer codes.
    """
    kernel, scale = _kernel(node, stored)
    axes = kernel.ndim - 2
    if axes not in (1, 2):
        raise UnsupportedOpError(f"{op_name(node)} has no integer form yet")
    stride, dilation = (_numbers(argument(node, one), axes) for one in ("stride", "dilation"))
    before, after = _padding(argument(node, "padding"), kernel.shape[2:], dilation)
    moving: dict[str, Any] = {"stride": _two(stride, 1), "before": _two(before, 0), "after": _two(after, 0)}
    moving |= {"dilation": _two(dilation, 1)}
    return _with_ends(node, kernel, scale, moving, (source, stored, arithmetic, ends))


def transposed_convolution(
    node: fx.Node, source: CodeGrid, stored: Stored, arithmetic: Arithmetic, ends: dict[str, Any]
) -> Convolution:
    """A transposed convolution along one or two axes: a convolution, with its kernel turned, of spread values.

    Raises:
        UnsupportedOpError: it runs along three, cuts off more than its kernel reaches, or its kernel has no codes.
    """
    kernel, scale = _kernel(node, stored)
    axes, groups = kernel.ndim - 2, int(argument(node, "groups"))
    if axes not in (1, 2):
        raise UnsupportedOpError(f"{op_name(node)} has no integer form yet")
    names = ("stride", "padding", "output_padding", "dilation")
    spread, padding, longer, dilation = (_numbers(argument(node, one), axes) for one in names)
    before = tuple(step * (size - 1) - cut for size, step, cut in zip(kernel.shape[2:], dilation, padding, strict=True))
    if min(before) < 0:
        raise UnsupportedOpError("it cuts off more than its kernel reaches, which has no integer form")
    after = tuple(one + more for one, more in zip(before, longer, strict=True))
    # [groups, inputs of a group, outputs of a group, ...] to [outputs, inputs of a group, ...], last entries first.
    parted = kernel.reshape(groups, -1, *kernel.shape[1:]).swapaxes(1, 2)
    turned = np.flip(parted.reshape(-1, *parted.shape[2:]), tuple(range(-axes, 0)))
    moving: dict[str, Any] = {"stride": (1, 1), "before": _two(before, 0), "after": _two(after, 0)}
    moving |= {"dilation": _two(dilation, 1), "spread": _two(spread, 1)}
    scales = np.tile(scale, groups) if scale.size > 1 else scale
    return _with_ends(node, np.ascontiguousarray(turned), scales, moving, (source, stored, arithmetic, ends))


def _with_ends(
    node: fx.Node,
    kernel: npt.NDArray[np.int16],
    scale: npt.NDArray[np.float32],
    moving: dict[str, Any],
    around: tuple[CodeGrid, Stored, Arithmetic, dict[str, Any]],
) -> Convolution:
    """A convolution from its kernel `[outputs, inputs of a group, ...]`, how it moves, and what lies around it."""
    source, stored, arithmetic, ends = around
    rule = arithmetic.of_layer("convolution", 8 * source.dtype.itemsize)
    single = kernel.ndim == 3
    return Convolution(
        kernel=np.ascontiguousarray(kernel[:, :, None, :]) if single else kernel,
        scales=scale,
        bias=_bias(node, scale, source, len(kernel), stored, arithmetic),
        factors=_factors(rule, scale, source, ends["grid"], arithmetic),
        rule=rule,
        source=source,
        groups=int(argument(node, "groups")),
        single=single,
        **moving,
        **ends,
    )


def linear(
    node: fx.Node, source: CodeGrid, stored: Stored, arithmetic: Arithmetic, ends: dict[str, Any]
) -> LinearLayer:
    """A linear layer, or a product with a stored matrix on the right.

    Raises:
        UnsupportedOpError: the matrix stands on the left or has more than two axes, or has no integer codes.
    """
    role = role_of(node)
    assert role is not None
    kernel, scale = _kernel(node, stored)
    if role.channel_axis != -1 or kernel.ndim != 2:
        raise UnsupportedOpError(f"{op_name(node)} with this matrix has no integer form yet")
    if role.kind == "matmul":
        kernel = np.ascontiguousarray(kernel.T)
    rule = arithmetic.of_layer("linear", 8 * source.dtype.itemsize)
    factors = _factors(rule, scale, source, ends["grid"], arithmetic)
    bias = _bias(node, scale, source, len(kernel), stored, arithmetic)
    return LinearLayer(kernel=kernel, scales=scale, bias=bias, factors=factors, rule=rule, source=source, **ends)


def _kernel(node: fx.Node, stored: Stored) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """Codes without zero points, int16; and their steps `[1]` or `[outputs]`."""
    role = role_of(node)
    read = None if role is None or role.weight is None else argument(node, role.weight)
    if not isinstance(read, fx.Node) or read.op == "get_attr":
        raise UnsupportedOpError("its kernel is not on a grid, so it has no codes")
    codes, scale, third = (part.numpy() for part in stored(read))
    axis, group_size = (*read.args[3:], None)[:2]
    if group_size is not None:
        raise UnsupportedOpError("kernels with steps for groups of inputs have no integer form")
    wide = codes.astype(np.int64)
    if read.target is torch.ops.detent.lut_dequantize.default:
        wide = _looked_up(wide, third, axis)
    else:
        wide = wide - _along(third.astype(np.int64), axis, wide.ndim)
    if int(np.abs(wide).max(initial=0)) > _LARGEST_CODE:
        raise UnsupportedOpError("codes of its kernel do not fit 16 bits without their zero point")
    return np.ascontiguousarray(wide.astype(np.int16)), scale.astype(np.float32).reshape(-1)


def _looked_up(codes: npt.NDArray[np.int64], table: npt.NDArray[np.float32], axis: Any) -> npt.NDArray[np.int64]:
    """Entries of a codebook in place of their numbers."""
    whole = np.rint(table)
    if not np.array_equal(whole, table):
        raise UnsupportedOpError("a codebook of other numbers than whole ones has no integer form")
    if table.ndim == 1:
        return whole.astype(np.int64)[codes]
    channels = np.arange(len(table)).reshape([-1 if dim == axis else 1 for dim in range(codes.ndim)])
    found: npt.NDArray[np.int64] = whole.astype(np.int64)[channels, codes]
    return found


def _along(entries: npt.NDArray[Any], axis: Any, rank: int) -> npt.NDArray[Any]:
    return entries.reshape([-1 if axis is not None and dim == axis % rank else 1 for dim in range(rank)])


def _factors(
    rule: Rule, scale: npt.NDArray[np.float32], source: CodeGrid, grid: CodeGrid, arithmetic: Arithmetic
) -> npt.NDArray[np.float64]:
    """Factors from steps of the accumulator to those of the output, float64; for the rule `"float"` float32 numbers."""
    first, result = np.float32(source.scale), np.float32(grid.scale)
    if rule == "float":
        factors: npt.NDArray[np.float64] = (first * scale / result).astype(np.float64)
        if not bool(np.all((factors > 0) & np.isfinite(factors))):
            raise UnsupportedOpError("the factor from its accumulators to codes is not a float32 number")
        return factors
    # As the kernels prepare them, from float32 scales in float64.
    quotients: npt.NDArray[np.float64] = np.float64(first) * scale.astype(np.float64) / np.float64(result)
    return quotients if arithmetic.factor_bits is None else to_bits(quotients, arithmetic.factor_bits)


def _bias(
    node: fx.Node,
    scale: npt.NDArray[np.float32],
    source: CodeGrid,
    outputs: int,
    stored: Stored,
    arithmetic: Arithmetic,
) -> npt.NDArray[np.int64]:
    """The bias in steps of the accumulator, int64 `[outputs]`."""
    steps = np.float32(source.scale) * scale
    role = role_of(node)
    read = None if role is None or role.bias is None else argument(node, role.bias)
    if read is None:
        return np.zeros(outputs, np.int64)
    if not isinstance(read, fx.Node):
        raise UnsupportedOpError("its bias is computed")
    first, *others = (part.numpy() for part in stored(read))
    if others:
        bias = first.astype(np.int64) - others[1].astype(np.int64)
    else:
        bias = np.rint(first.astype(np.float64).reshape(-1) / steps.astype(np.float64)).astype(np.int64)
    if arithmetic.factor_bits is not None:
        bias = to_bits(bias.astype(np.float64), arithmetic.factor_bits - 1).astype(np.int64)
    return np.ascontiguousarray(np.broadcast_to(bias, outputs))


def _numbers(given: Any, count: int) -> tuple[int, ...]:
    numbers = [given] if isinstance(given, int) else list(given)
    return tuple(int(one) for one in (numbers * count if len(numbers) == 1 else numbers))


def _padding(given: Any, sizes: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if given == "valid":
        return (0,) * len(sizes), (0,) * len(sizes)
    if given == "same":
        total = [step * (size - 1) for size, step in zip(sizes, dilation, strict=True)]
        return tuple(one // 2 for one in total), tuple(one - one // 2 for one in total)
    numbers = _numbers(given, len(sizes))
    return numbers, numbers


def _two(numbers: tuple[int, ...], filling: int) -> tuple[int, int]:
    return (filling, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
