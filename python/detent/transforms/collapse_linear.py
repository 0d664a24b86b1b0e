"""Collapses two linear layers with nothing in between into one; the float function stays the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument, argument_names
from detent.graph.shifts import COMPENSATED
from detent.transforms.edits import (
    finish,
    is_pointwise,
    is_read_once,
    kernel_is_shared,
    pads,
    parameter_path,
    per_axis,
    producer,
    store_tensor,
)

__all__ = ["collapse_linear"]


def collapse_linear(graph: Graph) -> Graph:
    """A graph in which a convolution and the 1x1 convolution after it are one layer, and so are two linear layers.

    The kernel of a k x k convolution W1 followed by a 1x1 convolution W2 is
    `W[o, i, k] = sum_m W2[o, m] W1[m, i, k]` with bias `W2 b1 + b2`. In the other order, 1x1 then k x k, it is
    `W[o, i, k] = sum_m W2[o, m, k] W1[m, i]` with bias `sum_mk W2[o, m, k] b1[m] + b2`; that one is exact only if the
    second layer reads no padding or the first has no bias. Sums are in float64 and rounded once. Layers are collapsed
    where that does not add parameters, until no more can be; where it would, or where something stands in the way, a
    note says so. The merged layer has the name of the second, whose output it makes. (Linear collapsing as in Bhardwaj
    et al. 2022, arXiv:2103.09404, section 3.)

    Args:
        graph: any captured network.
    """
    kept: list[str] = []
    if _next_pair(graph, kept) is None:
        return graph.with_notes(kept)
    collapsed = graph.copy()
    done: list[str] = []
    while True:
        kept = []
        pair = _next_pair(collapsed, kept)
        if pair is None:
            break
        done.append(f"{pair.first.name} into {pair.second.name}")
        _merge(collapsed, pair)
        collapsed = finish(collapsed)
    collapsed.notes += kept
    if done:
        collapsed.notes.append(f"collapsed {len(done)} layer{'s' * (len(done) > 1)}: {', '.join(done)}")
    return finish(collapsed)


@dataclass(frozen=True)
class _Pair:
    """Two layers that can be one, and that one's kernel and bias.

    `model` is the layer whose padding, dilation and, unless `stride` is given, stride it has.
    """

    first: GraphNode
    second: GraphNode
    weight: torch.Tensor
    bias: torch.Tensor | None
    model: GraphNode
    stride: list[int] | None


def _next_pair(graph: Graph, notes: list[str]) -> _Pair | None:
    for second in graph.nodes():
        first = producer(graph, second.data[0]) if second.kind in ("conv", "linear") and second.data else None
        if first is None or first.kind != second.kind or not _is_candidate(first, second):
            continue
        reason = _obstacle(graph, first, second)
        if reason is None:
            pair = _join(graph, first, second)
            if isinstance(pair, _Pair):
                return pair
            reason = pair
        notes.append(f"{first.name} and {second.name} are not collapsed: {reason}")
    return None


def _is_candidate(first: GraphNode, second: GraphNode) -> bool:
    """Whether one of the two mixes channels only: everything else would not be a near miss."""
    if first.weight is None or second.weight is None:
        return False
    return second.kind == "linear" or (
        first.groups == second.groups == 1 and (is_pointwise(first) or is_pointwise(second))
    )


def _obstacle(graph: Graph, first: GraphNode, second: GraphNode) -> str | None:
    if not is_read_once(graph, first.node):
        return f"the output of {first.name} is also used elsewhere"
    for layer in (first, second):
        if layer.bias is None and argument(layer.node, "bias") is not None:
            return f"the bias of {layer.name} is computed by the network"
        if kernel_is_shared(graph, layer):
            return f"the kernel of {layer.name} is also used elsewhere"
    assert first.weight is not None
    assert second.weight is not None
    if graph.tensor(first.weight).dtype != graph.tensor(second.weight).dtype:
        return "their kernels have different types"
    return None


def _join(graph: Graph, first: GraphNode, second: GraphNode) -> _Pair | str:
    """The two layers as one, or why they cannot be."""
    w1, b1 = _read(graph, first)
    w2, b2 = _read(graph, second)
    if first.kind == "linear":
        weight, spread, model, stride = w2 @ w1, w2, second, None
    elif is_pointwise(second) and not pads(second):
        stride = _strides(first, second)
        if stride is None:
            return f"{second.name} strides over the output of {first.name}, whose padding depends on its stride"
        weight, spread = torch.einsum("om,mi...->oi...", w2.flatten(1), w1), w2.flatten(1)
        model = first
    elif is_pointwise(first) and not pads(first) and set(per_axis(first, "stride")) == {1}:
        if pads(second) and b1 is not None and b1.any():
            return f"{second.name} pads its input with zeros, which the bias of {first.name} does not reach"
        weight, spread = torch.einsum("om...,mi->oi...", w2, w1.flatten(1)), w2.flatten(2).sum(2)
        model, stride = second, None
    else:
        return "the 1x1 convolution pads its input, or strides before the other one"
    bias = b2 if b1 is None else spread @ b1 + (0 if b2 is None else b2)
    before = sum(t.numel() for t in (w1, b1, w2, b2) if t is not None)
    after = weight.numel() + (0 if bias is None else bias.numel())
    if after > before:
        return f"one layer would have {after} parameters, the two have {before}"
    assert second.weight is not None
    rounded = [None if t is None else t.to(graph.tensor(second.weight).dtype) for t in (weight, bias)]
    if any(t is not None and not torch.isfinite(t).all() for t in rounded):
        return "the result would not be finite"
    assert rounded[0] is not None
    return _Pair(first, second, rounded[0].contiguous(), rounded[1], model, stride)


def _read(graph: Graph, layer: GraphNode) -> tuple[torch.Tensor, torch.Tensor | None]:
    assert layer.weight is not None
    bias = None if layer.bias is None else graph.tensor(layer.bias).detach().double()
    return graph.tensor(layer.weight).detach().double(), bias


def _strides(first: GraphNode, second: GraphNode) -> list[int] | None:
    """Strides of a layer followed by a 1x1 one: every s1-th position, and of those every s2-th."""
    s1, s2 = per_axis(first, "stride"), per_axis(second, "stride")
    if argument(first.node, "padding") == "same" and set(s2) != {1}:
        return None
    return [a * b for a, b in zip(s1, s2, strict=True)]


def _merge(graph: Graph, pair: _Pair) -> None:
    """Make the second layer's node compute both; the first is left to dead-code elimination."""
    second, call = pair.second, pair.second.node
    assert second.weight is not None
    like = graph.tensor(second.weight)
    nodes: list[fx.Node | None] = []
    for leaf, tensor in (("weight", pair.weight), ("bias", pair.bias)):
        path = parameter_path(second, leaf)
        nodes.append(None if tensor is None else store_tensor(graph, path, tensor, like=like, before=call))
    options = [argument(pair.model.node, name) for name in argument_names(pair.model.node)[3:]]
    if pair.stride is not None:
        options[0] = pair.stride
    if COMPENSATED in pair.first.node.meta:
        call.meta[COMPENSATED] = pair.first.node.meta[COMPENSATED]
    call.target = pair.model.node.target
    call.args = (argument(pair.first.node, "input"), *nodes, *options)
    call.kwargs = {}
