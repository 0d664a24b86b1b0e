"""Quantization as torch operators: `torch.ops.detent.*`, which export, compile and train.

* `fake_quantize(x, scale, zero_point, qmin, qmax, axis=None, group_size=None)`: values to values of the grid;
* `in_range_mask(...)`, the same arguments: where a straight-through gradient passes, bool;
* `dequantize(codes, scale, zero_point, axis=None, group_size=None)`: int8, uint8, int16, uint16 or int32 codes to
  values;
* `lut_fake_quantize(x, scale, table, axis=None, group_size=None)`, and `lut_dequantize(codes, ...)` for uint8 codes:
  the same for a codebook.

`x` is float32 of any strides, `scale` float32 `[n]`, `zero_point` int32 `[n]`; axes, groups, rounding and NaN are those
of `detent.kernels.quantize`. The result has the memory format of `x`. On the CPU the compiled kernels run on the
tensor's own memory; elsewhere `detent.graph.torch_grids` gives the same bits.

Gradients: straight-through for `x` (passed where `in_range_mask` is true; for a codebook, between its ends); for
`scale` as in learned step size quantization (Esser et al., 2020, equation 3), without the factor of section 2.2. None
for zero points and tables. Importing this module registers the operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from detent import _core
from detent.graph import torch_grids
from detent.kernels import quantize as kernels

__all__ = ["LIBRARY"]

_library: Any = torch.library  # without annotations in torch

LIBRARY = _library.Library("detent", "DEF")
"""The operators' registration; it lives as long as this object."""

_AFFINE = "Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, int? axis=None, int? group_size=None"
_CODES = "Tensor codes, Tensor scale, Tensor zero_point, int? axis=None, int? group_size=None"
_LUT = "Tensor x, Tensor scale, Tensor table, int? axis=None, int? group_size=None"
_LUT_CODES = "Tensor codes, Tensor scale, Tensor table, int? axis=None, int? group_size=None"


class _Context(Protocol):
    """What autograd keeps between forward and backward."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    numbers: tuple[Any, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


def _fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group_size: int | None = None,
) -> Tensor:
    out = torch.empty_like(x)
    if group_size is None:
        _core.fake_quantize(_dense(x, out), scale.numpy(), zero_point.numpy(), qmin, qmax, axis, out.numpy())
        return out
    array = _c_order(x)
    kernels.fake_quantize(
        array, scale.numpy(), zero_point.numpy(), qmin, qmax, axis=axis, group_size=group_size, out=array
    )
    return out.copy_(torch.from_numpy(array))


def _in_range_mask(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group_size: int | None = None,
) -> Tensor:
    out = torch.empty_like(x, dtype=torch.bool)
    if group_size is None:
        _core.in_range_mask(_dense(x, out), scale.numpy(), zero_point.numpy(), qmin, qmax, axis, out.numpy())
        return out
    mask = kernels.in_range_mask(
        x.contiguous().numpy(), scale.numpy(), zero_point.numpy(), qmin, qmax, axis=axis, group_size=group_size
    )
    return out.copy_(torch.from_numpy(mask))


def _dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None, group_size: int | None = None
) -> Tensor:
    out = torch.empty_like(codes, dtype=torch.float32)
    if group_size is None:
        _core.dequantize(_dense(codes, out), scale.numpy(), zero_point.numpy(), axis, out.numpy())
        return out
    values = kernels.dequantize(
        codes.contiguous().numpy(), scale.numpy(), zero_point.numpy(), axis=axis, group_size=group_size
    )
    return out.copy_(torch.from_numpy(values))


def _lut_fake_quantize(
    x: Tensor, scale: Tensor, table: Tensor, axis: int | None = None, group_size: int | None = None
) -> Tensor:
    out = torch.empty_like(x)
    if group_size is None:
        _core.lut_fake_quantize(_dense(x, out), scale.numpy(), table.numpy(), axis, out.numpy())
        return out
    array = _c_order(x)
    kernels.lut_fake_quantize(array, scale.numpy(), table.numpy(), axis=axis, group_size=group_size, out=array)
    return out.copy_(torch.from_numpy(array))


def _lut_dequantize(
    codes: Tensor, scale: Tensor, table: Tensor, axis: int | None = None, group_size: int | None = None
) -> Tensor:
    out = torch.empty_like(codes, dtype=torch.float32)
    if group_size is None:
        _core.lut_dequantize(_dense(codes, out), scale.numpy(), table.numpy(), axis, out.numpy())
        return out
    values = kernels.lut_dequantize(
        codes.contiguous().numpy(), scale.numpy(), table.numpy(), axis=axis, group_size=group_size
    )
    return out.copy_(torch.from_numpy(values))


def _dense(x: Tensor, out: Tensor) -> npt.NDArray[Any]:
    """The memory of `x`, or of a copy laid out as `out` if `x` has gaps; `out` is a new tensor made like `x`."""
    try:
        return (x if x.stride() == out.stride() else torch.empty_like(x).copy_(x)).numpy()
    except TypeError:  # NumPy has no such type: bfloat16, from autocast
        raise ValueError(
            f"x must have dtype torch.float32, got {x.dtype}; run quantized layers without autocast"
        ) from None


def _c_order(x: Tensor) -> npt.NDArray[Any]:
    """A copy of `x` in C order, as grids per group need."""
    return x.clone(memory_format=torch.contiguous_format).numpy()


def _keep(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, scale, third, *numbers = inputs
    ctx.save_for_backward(values, scale, third)
    ctx.numbers = tuple(numbers)


def _fake_quantize_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point = (tensor.detach() for tensor in ctx.saved_tensors)
    qmin, qmax, axis, group_size = ctx.numbers
    inside = torch.ops.detent.in_range_mask(x, scale, zero_point, qmin, qmax, axis, group_size)
    grad_x = torch.where(inside, grad, 0.0) if ctx.needs_input_grad[0] else None
    grad_scale = None
    if ctx.needs_input_grad[1]:
        codes, quotients = torch_grids.codes_and_quotients(x, scale, zero_point, qmin, qmax, axis, group_size)
        slopes = torch.where(inside, codes - quotients, codes)
        grad_scale = torch_grids.sum_entries(grad * slopes, axis, group_size)
    return grad_x, grad_scale, None, None, None, None, None


def _lut_fake_quantize_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, table = (tensor.detach() for tensor in ctx.saved_tensors)
    levels, quotients = torch_grids.levels_and_quotients(x, scale, table, *ctx.numbers)
    lowest, highest = torch_grids.table_ends(table, x, ctx.numbers[0])
    inside = (quotients >= lowest) & (quotients <= highest)
    grad_x = torch.where(inside, grad, 0.0) if ctx.needs_input_grad[0] else None
    grad_scale = None
    if ctx.needs_input_grad[1]:
        slopes = torch.where(inside, levels - quotients, levels)
        grad_scale = torch_grids.sum_entries(grad * slopes, *ctx.numbers)
    return grad_x, grad_scale, None, None, None


def _dequantize_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, scale, zero_point = (tensor.detach() for tensor in ctx.saved_tensors)
    distances = torch_grids.dequantize(codes, torch.ones_like(scale), zero_point, *ctx.numbers)
    return None, torch_grids.sum_entries(grad * distances, *ctx.numbers), None, None, None


def _lut_dequantize_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, _, table = (tensor.detach() for tensor in ctx.saved_tensors)
    levels = torch_grids.look_up(table, codes, ctx.numbers[0])
    return None, torch_grids.sum_entries(grad * levels, *ctx.numbers), None, None, None


def _no_gradient(ctx: _Context, grad: Tensor) -> tuple[None, ...]:
    return (None,) * 7


def _define(
    name: str,
    arguments: str,
    on_cpu: Callable[..., Tensor],
    elsewhere: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor | None, ...]],
    dtype: torch.dtype = torch.float32,
) -> None:
    def on_any(x: Tensor, *numbers: Any) -> Tensor:
        out = torch.empty_like(x, dtype=dtype)
        result = elsewhere(x, *numbers)
        return result if result.stride() == out.stride() else out.copy_(result)

    def without_data(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x, dtype=dtype)

    LIBRARY.define(f"{name}({arguments}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, on_cpu, "CPU")
    LIBRARY.impl(name, on_any, "CompositeExplicitAutograd")
    _library.register_fake(f"detent::{name}", without_data, lib=LIBRARY)
    _library.register_autograd(f"detent::{name}", backward, setup_context=_keep, lib=LIBRARY)


_define("fake_quantize", _AFFINE, _fake_quantize, torch_grids.fake_quantize, _fake_quantize_backward)
_define("in_range_mask", _AFFINE, _in_range_mask, torch_grids.in_range_mask, _no_gradient, torch.bool)
_define("dequantize", _CODES, _dequantize, torch_grids.dequantize, _dequantize_backward)
_define("lut_fake_quantize", _LUT, _lut_fake_quantize, torch_grids.lut_fake_quantize, _lut_fake_quantize_backward)
_define("lut_dequantize", _LUT_CODES, _lut_dequantize, torch_grids.lut_dequantize, _lut_dequantize_backward)
