"""Quantization as torch operators: `torch.ops.detent.*`, which export, compile and train.

* `fake_quantize(x, scale, zero_point, qmin, qmax, axis=None, group_size=None)`: values to values of the grid;
* `in_range_mask(...)`, same arguments: where a straight-through gradient passes, bool;
* `dequantize(codes, scale, zero_point, axis=None, group_size=None)`: int8, uint8, int16, uint16 or int32 codes to values;
* `lut_fake_quantize(x, scale, table, axis=None, group_size=None)` and `lut_dequantize(codes, scale, table, ...)`: the
  same for a codebook.

`x` is float32 of any strides, `scale` float32 `[n]`, `zero_point` int32 `[n]`; axes, groups, rounding and NaN are those
of `detent.kernels.quantize`. The result keeps the memory format of `x`. On the CPU the compiled kernels run on the tensor's
memory; anywhere else the functions in `detent.graph.torch_grids` give the same bits.

Gradients: straight-through for `x` (passed where `in_range_mask` is true; for a codebook, between its ends); for `scale`
as in learned step size quantization (Esser et al., 2020, eq. 3), without its gradient scale factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detent import _core
from detent.graph import torch_grids
from detent.kernels import quantize as kernels

__all__ = ["LIBRARY"]

LIBRARY = torch.library.Library("detent", "DEF")
"""Keeps the operators registered; lives as long as the process."""

_SAME_BITS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_GRID = "Tensor scale, Tensor zero_point, int qmin, int qmax, int? axis=None, int? group_size=None"
_TABLE = "Tensor scale, Tensor table, int? axis=None, int? group_size=None"


def _define(
    name: str,
    arguments: str,
    on_cpu: Callable[..., Tensor],
    elsewhere: Callable[..., Tensor],
    dtype: torch.dtype,
) -> None:
    LIBRARY.define(f"{name}({arguments}) -> Tensor", tags=_SAME_BITS)
    LIBRARY.impl(name, on_cpu, "CPU")
    LIBRARY.impl(name, elsewhere, "CompositeExplicitAutograd")

    @torch.library.register_fake(f"detent::{name}", lib=LIBRARY)
    def _(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x, dtype=dtype)
