"""Multiplies kernels, biases and limits by a factor per channel: float64 arithmetic, rounded once."""

from __future__ import annotations

from collections.abc import Iterable
from math import isinf

import torch
from torch import fx

from detent.graph.clamps import limits
from detent.graph.graph import Graph, GraphNode
from detent.graph.names import NAME
from detent.graph.roles import argument
from detent.graph.tensors import add_tensor, free_path
from detent.transforms.channel_paths import ChannelPath, Clamp, read_elsewhere
from detent.transforms.edits import FOLDED_NORM, parameter_path, read_kernel, store_tensor

__all__ = [
    "finite",
    "grouped_kernel",
    "replace_bias",
    "replace_tensor",
    "scale_clamp",
    "scale_kernel",
    "scale_path",
    "set_limits",
]


def grouped_kernel(weight: torch.Tensor, layer: GraphNode, spread: int = 1) -> torch.Tensor:
    """A kernel as float64 `[groups, outputs per group, inputs per group, rest]`, whatever the layer's own layout.

    Args:
        weight: kernel of `layer`.
        layer: convolution, transposed convolution or linear layer.
        spread: consecutive input columns of a linear layer that belong to one input; they become the last axis.
    """
    wide = weight.detach().double()
    if layer.kind == "linear":
        return wide.reshape(1, wide.shape[0], -1, spread)
    split = wide.reshape(layer.groups, wide.shape[0] // layer.groups, wide.shape[1], -1)
    return split.transpose(1, 2) if layer.kind == "conv_transposed" else split


def scale_kernel(
    graph: Graph,
    layer: GraphNode,
    *,
    outputs: torch.Tensor | None = None,
    inputs: torch.Tensor | None = None,
    spread: int = 1,
) -> None:
    """Multiply a layer's kernel by factors per output (its bias too) and per input channel.

    Args:
        graph: the network, edited.
        layer: a layer whose kernel and bias nobody else reads.
        outputs: float64 `[C_out]`.
        inputs: float64 `[C_in]`.
        spread: kernel columns per input channel.
    """
    assert layer.weight is not None
    weight = graph.tensor(layer.weight)
    kernel = grouped_kernel(weight, layer, spread)
    if outputs is not None:
        kernel = kernel * outputs.reshape(layer.groups, -1, 1, 1)
    if inputs is not None:
        kernel = kernel * inputs.reshape(layer.groups, 1, -1, 1)
    if layer.kind == "conv_transposed":
        kernel = kernel.transpose(1, 2)
    replace_tensor(graph, layer.weight, kernel.reshape(weight.shape))
    if outputs is not None:
        if layer.bias is not None:
            replace_tensor(graph, layer.bias, graph.tensor(layer.bias).detach().double() * outputs)
        if FOLDED_NORM in layer.node.meta:
            shift, gain = layer.node.meta[FOLDED_NORM]
            layer.node.meta[FOLDED_NORM] = (shift * outputs, gain * outputs)


def scale_path(graph: Graph, path: ChannelPath, factors: torch.Tensor) -> None:
    """Multiply a path's channels by `factors` `[C]` where they are made, and divide by them where they are read."""
    if path.source.weight is not None:
        scale_kernel(graph, path.source, outputs=factors)
    for clamp in path.clamps:
        scale_clamp(graph, clamp, factors)
    for reader in path.readers:
        scale_kernel(graph, reader.layer, inputs=1 / factors, spread=reader.spread)


def scale_clamp(graph: Graph, clamp: Clamp, factors: torch.Tensor) -> None:
    """Multiply a clamp's limits by `factors` `[C]`: s clamp(x, a, b) = clamp(s x, s a, s b) for s > 0.

    Limits that are the same for all channels stay numbers; others become stored tensors `[C, 1, ...]`.
    """
    item = clamp.item
    assert item.shape is not None
    wide = factors.repeat_interleave(clamp.spread).reshape(-1, *[1] * (len(item.shape) - 1 - clamp.axis))
    set_limits(graph, item, *(limit * wide for limit in limits(graph, item)))


def set_limits(graph: Graph, item: GraphNode, lower: torch.Tensor, upper: torch.Tensor) -> None:
    """Give a clamp new limits, which broadcast to its value's shape from the right; infinite ones are left out."""
    node, operand = item.node, item.data[0]
    if all(bool((limit == limit.flatten()[0]).all()) for limit in (lower, upper)):
        numbers = [float(limit.flatten()[0]) for limit in (lower, upper)]
        node.target = torch.ops.aten.clamp.default
        node.args = (operand, *(None if isinf(number) else number for number in numbers))
    else:
        names = {"lower": "min", "upper": "max"} if "Tensor" in str(node.target) else {}
        stored = [
            _limit(graph, item, leaf, limit, argument(node, names[leaf]) if names else None)
            for leaf, limit in (("lower", lower), ("upper", upper))
        ]
        node.target = torch.ops.aten.clamp.Tensor
        node.args = (operand, *stored)
    node.kwargs = {}


def _limit(graph: Graph, item: GraphNode, leaf: str, limit: torch.Tensor, old: fx.Node | None) -> fx.Node | None:
    if bool(limit.isinf().all()):
        return None
    value = limit.to(item.dtype)
    if old is not None and graph.tensor(old).shape == value.shape and not read_elsewhere(item, [old]):
        replace_tensor(graph, old, value)
        return old
    owner = "".join(c if c.isalnum() or c in "._" else "_" for c in item.node.meta[NAME])
    path = free_path(graph.module, f"{owner}.{leaf}")
    add_tensor(graph.module, path, value)
    with graph.module.graph.inserting_before(item.node):
        node = graph.module.graph.get_attr(path)
    node.meta["val"] = value.to("meta")
    return node


def replace_tensor(graph: Graph, read: fx.Node, values: torch.Tensor) -> None:
    """Put `values` in the place of the stored tensor that `read` reads, in its type and memory format."""
    old = graph.tensor(read)
    add_tensor(graph.module, str(read.target), torch.empty_like(old.detach()).copy_(values), like=old)


def replace_bias(graph: Graph, layer: GraphNode, values: torch.Tensor) -> None:
    """Give a layer the bias `values` `[C_out]`, whether it had one or not."""
    if layer.bias is not None:
        replace_tensor(graph, layer.bias, values)
        return
    assert layer.weight is not None
    kernel = graph.tensor(layer.weight)
    bias = store_tensor(graph, parameter_path(layer, "bias"), values.to(kernel), like=kernel, before=layer.node)
    read_kernel(layer.node, layer.weight, bias)


def finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no entry is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
