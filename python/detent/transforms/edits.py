"""The edits rewrites are made of: new tensors beside those they replace, and calls that read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument
from detent.graph.shapes import concrete_shape
from detent.graph.tensors import add_tensor, free_path, move_tensor, read_attribute

__all__ = [
    "FOLDED_NORM",
    "StoredReaders",
    "finish",
    "is_pointwise",
    "is_read_once",
    "kernel_is_shared",
    "pads",
    "parameter_path",
    "per_axis",
    "producer",
    "read_kernel",
    "set_kernel",
    "store_tensor",
]

FOLDED_NORM: Final = "detent_folded_norm"
"""Key of `fx.Node.meta`: `(beta, |gamma|)`, float64 `[C_out]`: mean and standard deviation that the norm folded into
the layer gave its output per channel. Whoever changes the layer's output drops or updates it."""

_REPLACED: Final = "_folded"
"""Mark of a new tensor's path while the original may still be read."""


def producer(graph: Graph, node: fx.Node) -> GraphNode | None:
    """The operator or input that makes a value; None for a stored tensor."""
    name = graph.name_of(node)
    return graph.find(name) if node.op != "get_attr" and name in graph else None


def is_read_once(graph: Graph, node: fx.Node) -> bool:
    """Whether a value is the operand of one operator, one time, and not an output of the network."""
    if len(node.users) != 1 or node in graph.outputs():
        return False
    (reader,) = node.users
    times = 0

    def count(operand: fx.Node) -> fx.Node:
        nonlocal times
        times += operand is node
        return operand

    fx.node.map_arg((reader.args, reader.kwargs), count)
    return times == 1


class StoredReaders:
    """Who reads the stored tensors of a graph, found in one pass for many questions; an edit makes it out of date.

    Args:
        graph: the network.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._by_memory: dict[object, set[fx.Node]] = {}
        self._by_path: dict[str, set[fx.Node]] = {}
        for node in graph.module.graph.find_nodes(op="get_attr", sort=False):
            self._by_path.setdefault(str(node.target), set()).update(node.users)
            stored = read_attribute(graph.module, str(node.target))
            if isinstance(stored, torch.Tensor):  # else a branch of torch.cond
                self._by_memory.setdefault(_memory(stored), set()).update(node.users)

    def share_kernel(self, layer: GraphNode) -> bool:
        """Whether another operator reads the layer's kernel, through the same path or a tied one."""
        assert layer.weight is not None
        return len(self._by_memory[_memory(self._graph.tensor(layer.weight))]) > 1

    def read_elsewhere(self, item: GraphNode, reads: Iterable[fx.Node | None]) -> bool:
        """Whether one of the stored tensors that `reads` read has by its path other readers than `item`."""
        return any(self._by_path[str(node.target)] - {item.node} for node in reads if node is not None)


def kernel_is_shared(graph: Graph, layer: GraphNode) -> bool:
    """Whether another operator reads the layer's kernel, through the same path or a tied one.

    For one question; who has many, and edits nothing in between, asks one `StoredReaders`.
    """
    return StoredReaders(graph).share_kernel(layer)


def is_pointwise(layer: GraphNode) -> bool:
    """Whether a convolution's kernel covers one position."""
    assert layer.weight is not None
    return set(concrete_shape(layer.weight)[2:]) == {1}


def pads(layer: GraphNode) -> bool:
    """Whether a convolution reads zeros around its input."""
    padding = argument(layer.node, "padding")
    if isinstance(padding, str):
        return padding != "valid" and not is_pointwise(layer)
    return any(per_axis(layer, "padding"))


def per_axis(layer: GraphNode, name: str) -> list[int]:
    """Stride, padding in numbers, or dilation of a convolution along each axis its kernel slides along."""
    assert layer.weight is not None
    value = argument(layer.node, name)
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * (len(concrete_shape(layer.weight)) - 2) if len(values) == 1 else values


def store_tensor(graph: Graph, path: str, tensor: torch.Tensor, *, like: torch.Tensor, before: fx.Node) -> fx.Node:
    """Store a tensor beside the one at `path`, which others may still read, and make a node that reads it.

    `finish` moves it to `path` if nobody reads the original any more.
    """
    path = free_path(graph.module, path + _REPLACED)
    add_tensor(graph.module, path, tensor, like=like)
    with graph.module.graph.inserting_before(before):
        node = graph.module.graph.get_attr(path)
    node.meta["val"] = tensor.to("meta")
    return node


def set_kernel(graph: Graph, layer: GraphNode, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    """Give a convolution or linear layer another kernel and bias, rounded once to the type of the old kernel.

    Returns:
        What is wrong with the new tensors, in which case nothing is changed; None if they are in place.
    """
    assert layer.weight is not None
    old = graph.tensor(layer.weight)
    rounded = [None if t is None else t.detach().to(old.dtype).contiguous() for t in (weight, bias)]
    if any(t is not None and not torch.isfinite(t).all() for t in rounded):
        return "the result would not be finite"
    nodes = []
    for leaf, tensor in zip(("weight", "bias"), rounded, strict=True):
        path = parameter_path(layer, leaf)
        nodes.append(None if tensor is None else store_tensor(graph, path, tensor, like=old, before=layer.node))
    assert nodes[0] is not None
    read_kernel(layer.node, nodes[0], nodes[1])
    return None


def parameter_path(layer: GraphNode, leaf: str) -> str:
    """Where the layer's `weight` or `bias` is stored, or would be if it had one."""
    assert layer.weight is not None
    old = layer.weight if leaf == "weight" else layer.bias
    return str(old.target) if old is not None else str(layer.weight.target).removesuffix("weight") + leaf


def read_kernel(call: fx.Node, weight: fx.Node, bias: fx.Node | None) -> None:
    """Make a call read these stored tensors as its kernel and bias."""
    data = argument(call, "input")
    call.kwargs = {name: value for name, value in call.kwargs.items() if name not in ("input", "weight", "bias")}
    call.args = (data, weight, bias, *call.args[3:])


def finish(graph: Graph) -> Graph:
    """The edited graph, ready to run: new tensors take the paths of those that nobody reads any more."""
    module = graph.module
    module.graph.eliminate_dead_code()
    paths = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path in sorted(paths):
        wanted, mark, count = path.rpartition(_REPLACED)
        if mark and not count and wanted not in paths:
            move_tensor(module, path, wanted)
    graph.refresh()
    return graph


def _memory(tensor: torch.Tensor) -> object:
    """What tensors in the same memory have in common; an empty one has no memory and is itself only."""
    return tensor.data_ptr() if tensor.numel() else (id(tensor),)
