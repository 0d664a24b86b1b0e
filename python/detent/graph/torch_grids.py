"""The quantization kernels written in torch operations, for devices that have no compiled ones.

Same numbers as `detent.kernels.quantize`, bit for bit: float32 division, rounding half to even, clamping, no -0.
Nothing here waits for the device, so scales and zero points are not checked beyond dtype and length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detent.kernels.groups import split_groups

__all__ = [
    "codes_and_quotients",
    "dequantize",
    "fake_quantize",
    "in_range_mask",
    "levels_and_quotients",
    "look_up",
    "lut_dequantize",
    "lut_fake_quantize",
    "spread",
    "sum_entries",
    "table_ends",
]


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group_size: int | None = None,
) -> Tensor:
    """Values to the nearest values of a grid."""
    codes, _ = codes_and_quotients(x, scale, zero_point, qmin, qmax, axis, group_size)
    return codes * spread(scale, x, axis, group_size)


def codes_and_quotients(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None, group_size: int | None
) -> tuple[Tensor, Tensor]:
    """`code - zero_point` and `x / scale`, both float32, shaped like `x`."""
    steps, lower, upper = _limits(x, scale, zero_point, qmin, qmax, axis, group_size)
    quotients = x / steps
    # Clamping keeps NaN; adding zero turns -0 into 0.
    return torch.round(quotients).clamp(lower, upper).add(0.0), quotients


def in_range_mask(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group_size: int | None = None,
) -> Tensor:
    """True where rounding alone, without clamping, gives a code of the grid."""
    steps, lower, upper = _limits(x, scale, zero_point, qmin, qmax, axis, group_size)
    rounded = torch.round(x / steps)
    return (rounded >= lower) & (rounded <= upper)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None, group_size: int | None = None
) -> Tensor:
    """Codes to values."""
    _require(scale, torch.float32, "scale")
    _require(zero_point, torch.int32, "zero_point")
    # int64 holds every difference of codes; torch has no arithmetic on uint16.
    distance = codes.to(torch.int64) - spread(zero_point, codes, axis, group_size)
    return distance.to(torch.float32) * spread(scale, codes, axis, group_size)


def lut_fake_quantize(
    x: Tensor, scale: Tensor, table: Tensor, axis: int | None = None, group_size: int | None = None
) -> Tensor:
    """Values to the nearest values of a codebook."""
    levels, _ = levels_and_quotients(x, scale, table, axis, group_size)
    # Adding zero turns the -0 of an underflow into 0.
    return (levels * spread(scale, x, axis, group_size)).add_(0.0)


def levels_and_quotients(
    x: Tensor, scale: Tensor, table: Tensor, axis: int | None, group_size: int | None
) -> tuple[Tensor, Tensor]:
    """The table entry nearest to `x / scale` (NaN for NaN), and `x / scale`."""
    _require(x, torch.float32, "x")
    _require(scale, torch.float32, "scale")
    _require(table, torch.float32, "table")
    quotients = x / spread(scale, x, axis, group_size)
    wide = table.to(torch.float64)
    bounds = ((wide[..., :-1] + wide[..., 1:]) / 2).to(torch.float32)
    # searchsorted puts NaN after the last bound, where the table still has an entry.
    if table.dim() == 1:
        codes = torch.searchsorted(bounds, quotients.contiguous())
    else:
        rows, back = _channel_rows(quotients, table, axis)
        codes = back(torch.searchsorted(bounds, rows))
    return torch.where(x.isnan(), x, look_up(table, codes, axis)), quotients


def look_up(table: Tensor, codes: Tensor, axis: int | None) -> Tensor:
    """Entries of a codebook `[k]`, or of one for each channel `[n, k]`, shaped like `codes`."""
    if table.dim() == 1:
        return table[codes.long()]
    rows, back = _channel_rows(codes.long(), table, axis)
    return back(table.gather(1, rows))


def table_ends(table: Tensor, x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Lowest and highest entry of each codebook, shaped to broadcast against `x`."""
    if table.dim() == 1:
        return table[0], table[-1]
    return spread(table[:, 0], x, axis, None), spread(table[:, -1], x, axis, None)


def _channel_rows(x: Tensor, table: Tensor, axis: int | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`x` as `[channels, others]`, and what brings such a tensor back to the shape of `x`."""
    if axis is None or x.shape[axis] != len(table):
        raise ValueError(
            f"{len(table)} codebooks need as many channels along `axis`, got axis {axis} of {list(x.shape)}"
        )
    moved = x.movedim(axis, 0)
    return moved.reshape(len(table), -1).contiguous(), lambda rows: rows.reshape(moved.shape).movedim(0, axis)


def lut_dequantize(
    codes: Tensor, scale: Tensor, table: Tensor, axis: int | None = None, group_size: int | None = None
) -> Tensor:
    """Codes of a codebook to values."""
    _require(scale, torch.float32, "scale")
    return (look_up(table, codes, axis) * spread(scale, codes, axis, group_size)).add_(0.0)


def spread(vector: Tensor, x: Tensor, axis: int | None, group_size: int | None) -> Tensor:
    """One entry per array, per channel, or per channel and group, shaped to broadcast against `x`.

    Raises:
        ValueError: the vector's length or the axis does not fit `x`.
    """
    if axis is None and group_size is None:
        return vector.reshape(()) if vector.dim() == 1 and len(vector) == 1 else _wrong_length(vector, 1)
    if group_size is None:
        assert axis is not None
        if not -x.dim() <= axis < x.dim():
            raise ValueError(f"axis {axis} is outside x of shape {list(x.shape)}")
        channels = x.shape[axis]
        shape = [1] * x.dim()
        shape[axis] = channels
        return vector.reshape(shape) if vector.shape == (channels,) else _wrong_length(vector, channels)
    channel_axis, groups = split_groups(tuple(x.shape), axis, group_size)
    channels = x.shape[channel_axis]
    if vector.shape != (channels * groups,):
        _wrong_length(vector, channels * groups)
    per_input = vector.reshape(channels, groups).repeat_interleave(group_size, dim=1)
    if channel_axis == 1:
        per_input = per_input.T
    return per_input.reshape(*per_input.shape, *[1] * (x.dim() - 2))


def sum_entries(terms: Tensor, axis: int | None, group_size: int | None) -> Tensor:
    """Sum of the elements that share an entry of the grid: the reverse of `spread`, `[n]`."""
    if axis is None:
        return terms.sum().reshape(1)
    channel_axis = axis % terms.dim()
    if group_size is None:
        others = [d for d in range(terms.dim()) if d != channel_axis]
        return terms.sum(others) if others else terms.clone()
    channels_first = terms.movedim(channel_axis, 0)
    channels, inputs = channels_first.shape[:2]
    return channels_first.reshape(channels * (inputs // group_size), -1).sum(1)


def _limits(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None, group_size: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    _require(x, torch.float32, "x")
    _require(scale, torch.float32, "scale")
    _require(zero_point, torch.int32, "zero_point")
    zeros = spread(zero_point, x, axis, group_size)
    return spread(scale, x, axis, group_size), (qmin - zeros).to(torch.float32), (qmax - zeros).to(torch.float32)


def _require(tensor: Tensor, dtype: torch.dtype, name: str) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{name} must have dtype {dtype}, got {tensor.dtype}")


def _wrong_length(vector: Tensor, expected: int) -> Tensor:
    raise ValueError(f"the grid must have {expected} entries, got shape {list(vector.shape)}")
