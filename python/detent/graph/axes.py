"""Which axis of a value holds its channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from detent.graph.roles import OpRole, argument, argument_names, first_argument, op_name, role_of
from detent.graph.shapes import concrete_shape, concrete_size, is_tensor, value_of

__all__ = ["axis_summed_by", "channel_axes", "summed_axis"]


def channel_axes(graph: fx.Graph, batch: Mapping[fx.Node, int]) -> dict[fx.Node, int | None]:
    """The channel axis of every tensor, non-negative; None where there is none or it was mixed with another axis.

    Args:
        graph: the graph, in order of execution.
        batch: batch axis of each value that has one; a channel axis never coincides with it.
    """
    axes: dict[fx.Node, int | None] = {}
    for node in graph.nodes:
        shape = _shape(node)
        if shape is None:
            continue
        rank = len(shape)
        role = role_of(node)
        axis: int | None
        if node.op == "placeholder":
            axis = summed_axis(node) or (1 if rank > 1 else None)
        elif role is None:
            axis = None
        else:
            axis = _channel_axis(node, role, rank, axes)
        axes[node] = None if axis is None or axis >= rank or axis == batch.get(node) else axis
    return axes


def summed_axis(value: fx.Node) -> int | None:
    """The axis that all kernels reading a value sum over; None if none reads it, or if they disagree."""
    found = set()
    for user in value.users:
        role = role_of(user)
        if role is not None and role.kind in ("conv", "conv_transposed", "linear") and first_argument(user) is value:
            found.add(axis_summed_by(user, len(_shape(value) or ())))
    return found.pop() if len(found) == 1 else None


def axis_summed_by(layer: fx.Node, rank: int) -> int:
    """The axis of its input, which has so many axes, that a convolution or linear layer sums over."""
    role = role_of(layer)
    assert role is not None
    spatial = 0 if role.kind == "linear" else len(concrete_shape(argument(layer, "weight"))) - 2
    return rank - spatial - 1


def _channel_axis(node: fx.Node, role: OpRole, rank: int, axes: dict[fx.Node, int | None]) -> int | None:
    rule = role.channel_axis
    if rule is None or rank == 0:
        return None
    if isinstance(rule, int):
        return rule % rank if -rank <= rule < rank else None
    if rule == "spatial":
        # Kernels have two axes besides the spatial ones: this also holds for a conv called without a batch axis.
        return rank - len(concrete_shape(argument(node, "weight"))) + 1
    source = _first_tensor(first_argument(node))
    axis = None if source is None else axes.get(source)
    if source is None or axis is None:
        return None
    before = _shape(source) or ()
    if rule == "reduced":
        return _after_reduction(node, axis, len(before))
    if rule == "moved":
        return _after_move(node, axis, before)
    if rank == len(before):
        return axis
    # Broadcasting adds axes in front.
    return axis + rank - len(before) if rank > len(before) else None


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of a tensor, or of the first of several: the parts of a split differ in length only."""
    value = value_of(node)
    if isinstance(value, tuple | list) and value and isinstance(value[0], torch.Tensor):
        return tuple(concrete_size(size) for size in value[0].shape)
    return concrete_shape(node) if is_tensor(node) else None


def _first_tensor(value: Any) -> fx.Node | None:
    members = value if isinstance(value, tuple | list) else (value,)
    return next((m for m in members if isinstance(m, fx.Node) and _shape(m) is not None), None)


def _after_reduction(node: fx.Node, axis: int, rank: int) -> int | None:
    try:
        dims = argument(node, "dim")
        keep = bool(argument(node, "keepdim"))
    except KeyError:
        return None
    reduced = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
    if axis in reduced:
        return None
    return axis if keep else axis - sum(d < axis for d in reduced)


def _after_move(node: fx.Node, axis: int, before: tuple[int, ...]) -> int | None:
    name, rank = op_name(node), len(before)
    after = _shape(node) or ()
    if name == "permute":
        order = [int(d) % rank for d in argument(node, "dims")]
        return order.index(axis)
    if name in ("transpose", "swapaxes", "swapdims", "t", "mT", "adjoint", "numpy_T"):
        return _after_transpose(node, name, axis, rank)
    if name == "unsqueeze":
        position = int(argument(node, "dim")) % (rank + 1)
        return axis + (position <= axis)
    if name in ("select", "squeeze", "unbind"):
        dims = argument(node, "dim") if "dim" in argument_names(node) else None
        gone = _squeezed(name, dims, before)
        return None if axis in gone else axis - sum(d < axis for d in gone)
    if name in ("expand", "expand_as", "broadcast_to", "repeat", "tile"):
        return axis + len(after) - rank
    if name in ("movedim", "moveaxis", "unfold", "im2col", "rot90", "diagonal", "index", "gather", "take_along_dim"):
        return None
    if len(after) == rank:
        # Slices, chunks, flips and the like keep axes in place; a reshape keeps this one if the sizes around it agree.
        same = name not in (
            "reshape",
            "view",
            "_unsafe_view",
            "flatten",
            "unflatten",
            "pixel_shuffle",
            "pixel_unshuffle",
        )
        return axis if same or after[: axis + 1] == before[: axis + 1] else None
    if after[: axis + 1] == before[: axis + 1]:
        return axis
    # flatten([N, C, 1, 1]) still has one column per channel.
    return axis if after == before[: len(after)] and set(before[len(after) :]) <= {1} else None


def _after_transpose(node: fx.Node, name: str, axis: int, rank: int) -> int:
    if name == "numpy_T":
        return rank - 1 - axis
    if name in ("t", "mT", "adjoint"):
        first, second = rank - 2, rank - 1
    else:
        first, second = (d % rank for d in node.args[1:3] if isinstance(d, int))
    return {first: second, second: first}.get(axis, axis)


def _squeezed(name: str, dims: Any, before: tuple[int, ...]) -> set[int]:
    rank = len(before)
    if dims is None:
        return {d for d, size in enumerate(before) if size == 1}
    chosen = {d % rank for d in ([dims] if isinstance(dims, int) else dims)}
    return chosen if name != "squeeze" else {d for d in chosen if before[d] == 1}
