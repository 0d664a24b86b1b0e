"""Folds the gain and shift of an input into a layer that reads it, directly or through operators that move values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.layouts import BATCH
from detent.graph.names import NAME, PREPARES, RANGE
from detent.graph.roles import argument, argument_names, op_name
from detent.graph.shapes import concrete_shape
from detent.graph.shifts import COMPENSATED
from detent.transforms.affine import Affine, absorb_affine, kernel_obstacle
from detent.transforms.edits import is_pointwise, is_read_once, pads, per_axis
from detent.transforms.insertion import Inserter

__all__ = ["FoldedReader", "fold_into_reader"]

_MOST_PADDINGS: Final = 4
"""Different values to pad channels with that are worth an operator each: those of an image, not of a spectrogram."""

_SAME_PLACE: Final = ("contiguous", "clone", "detach", "alias", "dropout", "to")
_TO_VECTORS: Final = ("flatten", "reshape", "view", "_unsafe_view")


@dataclass(frozen=True)
class FoldedReader:
    """What became of a gain and shift at one reader.

    Args:
        layer: name of the layer that took them in.
        padding: in words, what its zero padding became; empty if it has none or needs none.
        reason: why they were not taken in, None if they were.
    """

    layer: str = ""
    padding: str = ""
    reason: str | None = None


def fold_into_reader(graph: Graph, name: str, value: fx.Node, affine: Affine, reader: fx.Node) -> FoldedReader:
    """Take gain and shift of `value` into the layer that reads it; the graph then computes from the bare value.

    Args:
        graph: the graph under edit.
        name: name of the input that the value is, for names and notes.
        value: what the reader reads.
        affine: the gain and shift of that value, by its own axis of channels.
        reader: the layer, or the first of the operators on the way to it.
    """
    before, follow = value, reader
    items = {item.node: item for item in graph.nodes()}
    while follow in items and items[follow].kind not in ("conv", "linear"):
        item = items[follow]
        moved = _move(affine, item, before)
        if moved is None or not is_read_once(graph, item.node):
            return FoldedReader(reason=f"{item.name} reads it")
        affine, before = moved, item.node
        (follow,) = item.node.users
    if follow not in items:
        return FoldedReader(reason="it is an output of the network" if follow.op == "output" else f"{follow} reads it")
    layer = items[follow]
    reason = _obstacle(graph, layer, affine, before)
    if reason is not None:
        return FoldedReader(reason=reason)
    padded = layer.kind == "conv" and bool(affine.shift.any()) and pads(layer)
    sizes = concrete_shape(before)
    channels = sizes[-1] if layer.kind == "linear" else sizes[layer.channel_axis or 0]
    zeros = (-affine.shift / affine.gain).expand(channels)
    fillings = _runs(zeros) if padded else []
    if len(fillings) > _MOST_PADDINGS:
        return FoldedReader(
            reason=f"{layer.name} pads with zeros, which differ in {len(fillings)} runs of raw channels"
        )
    reason = absorb_affine(graph, affine, layer)
    if reason is not None:
        return FoldedReader(reason=f"{layer.name}: {reason}")
    if zeros.any():
        # The raw input is the centred one and these: the bias takes them back as a rewrite by a shift does.
        layer.node.meta[COMPENSATED] = zeros.numpy()
    if not fillings:
        return FoldedReader(layer=layer.name)
    _pad_in_front(graph, name, layer, before, fillings)
    values = ", ".join(f"{filling:.6g}" for filling, _ in fillings)
    return FoldedReader(layer=layer.name, padding=f" (padded with raw {values} instead of 0)")


def _move(affine: Affine, item: GraphNode, before: fx.Node) -> Affine | None:
    """Gain and shift of an operator's output, by those of its input; None if it is not one that only moves values."""
    if not item.preserving or item.data != (before,):
        return None
    name, shape = op_name(item.node), item.shape
    if name in _SAME_PLACE:
        return affine
    if name == "permute":
        axis = None if affine.axis is None else list(argument(item.node, "dims")).index(affine.axis)
        return Affine(affine.source, axis, affine.gain, affine.shift)
    sizes = concrete_shape(before)
    if name in _TO_VECTORS and shape is not None and len(shape) == 2 and shape[0] == sizes[0]:
        if affine.axis is None:
            return affine
        view = [-1 if dim == affine.axis else 1 for dim in range(1, len(sizes))]
        gain, shift = (t.reshape(view).expand(sizes[1:]).flatten() for t in (affine.gain, affine.shift))
        return Affine(affine.source, 1, gain, shift)
    return None


def _obstacle(graph: Graph, layer: GraphNode, affine: Affine, before: fx.Node) -> str | None:
    if layer.weight is None:
        return f"the kernel of {layer.name} is computed by the network"
    if layer.data[0] is not before:
        return f"{layer.name} reads it as its kernel or bias"
    axis = len(concrete_shape(before)) - 1 if layer.kind == "linear" else layer.channel_axis
    if affine.axis not in (None, axis):
        return f"the channels of {layer.name} lie on another axis"
    if graph.tensor(layer.weight).dtype != before.meta["val"].dtype:
        return f"{layer.name} has a kernel of another type"
    return kernel_obstacle(graph, layer)


def _runs(fillings: torch.Tensor) -> list[tuple[float, int]]:
    """What each run of neighbouring channels is padded with, and the length of the run."""
    runs: list[tuple[float, int]] = []
    for filling in fillings.tolist():
        if runs and runs[-1][0] == filling:
            runs[-1] = (filling, runs[-1][1] + 1)
        else:
            runs.append((filling, 1))
    return runs


def _pad_in_front(
    graph: Graph, name: str, layer: GraphNode, before: fx.Node, fillings: list[tuple[float, int]]
) -> None:
    """Pad each run of channels with its filling, and the layer with nothing."""
    aten, layout = torch.ops.aten, before.meta.get(BATCH)
    (input_node,) = (node for node in graph.module.graph.nodes if node.meta.get(NAME) == name)
    insert, widths, axis = Inserter(graph, layer.node, input_node), _widths(layer), layer.channel_axis
    limits = input_node.meta.get(RANGE)

    def add(word: str, operator: Any, *args: Any) -> fx.Node:
        node = insert.call(word, operator, *args, layout=layout)
        node.meta[PREPARES] = name
        if limits is not None:
            node.meta[RANGE] = (min(limits[0], *(f for f, _ in fillings)), max(limits[1], *(f for f, _ in fillings)))
        return node

    parts, start = [], 0
    for filling, count in fillings:
        part = before if len(fillings) == 1 else add("slice", aten.slice.Tensor, before, axis, start, start + count)
        parts.append(add("pad", aten.constant_pad_nd.default, part, widths, filling))
        start += count
    padded = parts[0] if len(parts) == 1 else add("cat", aten.cat.default, parts, axis)
    layer.node.replace_input_with(before, padded)
    none: Any = "valid" if isinstance(argument(layer.node, "padding"), str) else [0] * (len(widths) // 2)
    _set_argument(layer.node, "padding", none)


def _widths(layer: GraphNode) -> list[int]:
    """Zeros the layer adds before and after each axis, the last axis first, as `constant_pad_nd` takes them."""
    assert layer.weight is not None
    padding = argument(layer.node, "padding")
    if padding == "same" and not is_pointwise(layer):
        kernel = concrete_shape(layer.weight)[2:]
        totals = [dilation * (size - 1) for size, dilation in zip(kernel, per_axis(layer, "dilation"), strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(width, width) for width in per_axis(layer, "padding")]
    return [width for pair in reversed(pairs) for width in pair]


def _set_argument(call: fx.Node, name: str, value: Any) -> None:
    index = argument_names(call).index(name)
    if name in call.kwargs or index >= len(call.args):
        call.update_kwarg(name, value)
    else:
        call.update_arg(index, value)
