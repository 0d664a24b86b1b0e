"""Logits are centred on zero before a softmax, so that a signed grid of the same step holds more of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument, op_name
from detent.records.statistics import Statistics
from detent.transforms.channel_factors import replace_bias
from detent.transforms.channel_paths import KERNELS, read_elsewhere, summarize
from detent.transforms.edits import FOLDED_NORM, finish, is_read_once, producer
from detent.transforms.observed import observed_value, require_statistics_of

__all__ = ["read_by_softmax_shift", "shift_softmax"]


def shift_softmax(graph: Graph, statistics: Statistics) -> Graph:
    """A new graph in which layers before a softmax have their outputs centred: b <- b - (max + min) / 2.

    Softmax does not change when one number is subtracted from all its inputs. The number is the middle of the range
    observed of the layer's output, over all channels.

    Args:
        graph: any captured network.
        statistics: what calibration saw of this graph.

    Raises:
        ConfigError: the statistics belong to another graph.
    """
    require_statistics_of(graph, statistics)
    shifted = graph.copy()
    done: list[str] = []
    rejected: dict[str, str] = {}
    for softmax, layer in _layers(shifted):
        reason = _obstacle(shifted, layer, softmax)
        seen = observed_value(shifted, statistics, layer.node)
        if reason is None and seen is None:
            reason = "its output was not observed"
        if reason is not None or seen is None:
            rejected[layer.name] = str(reason)
            continue
        middle = (seen.maximum + seen.minimum) / 2
        if middle != 0:
            _shift(shifted, layer, -middle)
            done.append(f"{layer.name} by {-middle:.4g}")
    summarize(shifted, "not centred before softmax", rejected)
    if done:
        shifted.notes.append(f"centred before softmax: {', '.join(done)}")
    return finish(shifted)


def read_by_softmax_shift(graph: Graph) -> Iterator[tuple[fx.Node, ...]]:
    """The values whose statistics `shift_softmax` reads, each in a group of its own."""
    return ((layer.node,) for _, layer in _layers(graph))


def _layers(graph: Graph) -> Iterator[tuple[GraphNode, GraphNode]]:
    """Every softmax that follows a layer, and the layer."""
    for softmax in graph.nodes():
        layer = _layer(graph, softmax) if softmax.kind == "softmax" else None
        if layer is not None:
            yield softmax, layer


def _layer(graph: Graph, softmax: GraphNode) -> GraphNode | None:
    """The convolution or linear layer whose output the softmax reads, moved at most; None if it is something else."""
    item = producer(graph, softmax.data[0])
    while item is not None and item.preserving and item.kind == "preserving" and op_name(item.node) != "im2col":
        item = producer(graph, item.data[0]) if item.data else None
    return item if item is not None and item.kind in KERNELS else None


def _obstacle(graph: Graph, layer: GraphNode, softmax: GraphNode) -> str | None:
    node = layer.node
    while node is not softmax.node:
        if not is_read_once(graph, node):
            return "its output is also used elsewhere"
        (node,) = node.users
    if layer.weight is None or (layer.bias is None and argument(layer.node, "bias") is not None):
        return "its kernel or bias is computed by the network"
    if read_elsewhere(layer, [layer.bias]):
        return "its bias is used more than once"
    return None


def _shift(graph: Graph, layer: GraphNode, amount: float) -> None:
    assert layer.weight is not None
    outputs = layer.shape[layer.channel_axis] if layer.shape and layer.channel_axis is not None else 0
    old = torch.zeros(outputs) if layer.bias is None else graph.tensor(layer.bias).detach()
    replace_bias(graph, layer, old.double() + amount)
    if FOLDED_NORM in layer.node.meta:
        shift, gain = layer.node.meta[FOLDED_NORM]
        layer.node.meta[FOLDED_NORM] = (shift + amount, gain)
