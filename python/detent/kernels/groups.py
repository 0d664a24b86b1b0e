"""Grids per group of the input axis, reduced to grids per channel of a view."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Grid", "GroupView", "Kernel", "apply_grids", "group_views", "require_group_entries", "split_groups"]

Array = npt.NDArray[Any]
Grid = tuple[Array, ...]
"""The vectors that describe grids: scales, or scales and zero points."""
GroupView = tuple[Array, slice]
"""A dense view whose channels run along axis 0 or 1, and which of the grid's entries belong to them."""


class Kernel(Protocol):
    """An element-wise kernel with its numbers bound."""

    def __call__(self, x: Array, grid: Grid, axis: int | None, out: Array | None) -> Array: ...


def split_groups(shape: tuple[int, ...], axis: int | None, group_size: int) -> tuple[int, int]:
    """Channel axis (0 or 1) and number of groups for an array of this shape.

    Raises:
        ValueError: the axis is not 0 or 1, or the group size does not divide the input axis.
    """
    if axis is None:
        raise ValueError("group_size needs the channel axis: give `axis`")
    channel_axis = axis + len(shape) if axis < 0 else axis
    if len(shape) < 2 or channel_axis not in (0, 1):
        raise ValueError(f"groups need at least two axes and `axis` 0 or 1, got axis {axis} of shape {list(shape)}")
    inputs = shape[1 - channel_axis]
    if group_size < 1 or inputs % group_size:
        raise ValueError(f"group_size {group_size} does not divide the {inputs} elements of axis {1 - channel_axis}")
    return channel_axis, inputs // group_size


def group_views(x: Array, channel_axis: int, groups: int, name: str) -> list[GroupView]:
    """Split `x` into views with one grid per channel, and the entries of each view.

    With channels on axis 0, a channel's groups are consecutive in memory: one view `[channels * groups, ...]`. With
    channels on axis 1, a group is a slice of axis 0: one view per group.

    Raises:
        ValueError: `x` is not in C order.
    """
    if not x.flags.c_contiguous:
        raise ValueError(
            f"{name} must be in C order for grids per group; pass numpy.ascontiguousarray({name}) or "
            f"{name}.contiguous()"
        )
    if channel_axis == 0:
        return [(x.reshape(x.shape[0] * groups, x.size // max(1, x.shape[0] * groups)), slice(None))]
    size = x.shape[0] // groups if groups else 0
    return [(x[g * size : (g + 1) * size], slice(g, None, groups)) for g in range(groups)]


def apply_grids(
    kernel: Kernel,
    x: Array,
    grid: Grid,
    axis: int | None,
    group_size: int | None,
    dtype: npt.DTypeLike,
    out: Array | None,
) -> Array:
    """Run an element-wise kernel for grids per array or channel on grids per array, channel or group.

    Args:
        kernel: called with a view of `x`, the vectors of its grids, its channel axis and a view of the result.
        x: dense array; in C order for grids per group.
        grid: vectors with one entry per array, channel, or channel and group, channel first.
        axis: channel axis.
        group_size: elements of the input axis per group; None for grids per array or channel.
        dtype: of the result.
        out: the result, or None for a new array.

    Raises:
        ValueError: shapes, layouts or lengths do not fit.
    """
    if group_size is None:
        return kernel(x, grid, axis, out)
    channel_axis, groups = split_groups(x.shape, axis, group_size)
    require_group_entries(grid, x.shape[channel_axis], groups)
    result = np.empty(x.shape, dtype) if out is None else out
    if result.shape != x.shape or result.dtype != dtype:
        raise ValueError(f"out must be {np.dtype(dtype)} of shape {list(x.shape)}")
    if result.ctypes.data != x.ctypes.data and np.may_share_memory(result, x):
        raise ValueError("out overlaps the input; pass an array of its own, or the input itself")
    sources, targets = group_views(x, channel_axis, groups, "x"), group_views(result, channel_axis, groups, "out")
    for (source, entries), (target, _) in zip(sources, targets, strict=True):
        kernel(source, tuple(np.ascontiguousarray(vector[entries]) for vector in grid), channel_axis, target)
    return result


def require_group_entries(grid: Grid, channels: int, groups: int) -> None:
    """Check that each vector has one entry per channel and group.

    Raises:
        ValueError: it has not.
    """
    for vector in grid:
        if vector.shape != (channels * groups,):
            raise ValueError(
                f"grids per group need {channels} channels x {groups} groups entries, got shape {list(vector.shape)}"
            )
