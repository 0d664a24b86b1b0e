"""Folds per-channel gains and shifts into the layer that reads them; the float function stays the same."""

from __future__ import annotations

from detent.graph.graph import Graph, GraphNode
from detent.transforms.affine import Affine, absorb_affine, kernel_obstacle, read_affine
from detent.transforms.edits import finish, is_read_once, pads, producer

__all__ = ["fold_forward"]


def fold_forward(graph: Graph) -> Graph:
    """A new graph in which batch norms, 1x1 depthwise layers and arithmetic by constants are part of the next layer.

    They give each channel a gain s and a shift t. The convolution or linear layer that reads the result gets the kernel
    `W[o, i] s[i]` and the bias `b[o] + sum_i W[o, i] t[i]`, summed over all positions of the kernel, in float64 and
    rounded once. Zeros around the input stay zeros under a gain but not under a shift: a layer that pads takes gains
    only. A norm that has a layer of its own in front is left to `fold_batch_norm`, which is to run first. What cannot
    be folded stays, and a note says why.

    Args:
        graph: any captured network.
    """
    folded = graph.copy()
    done: list[str] = []
    while True:
        kept: list[str] = []
        pair = _fold_next(folded, kept)
        if pair is None:
            break
        done.append(pair)
        folded = finish(folded)
    folded.notes += kept
    if done:
        folded.notes.append(f"folded {len(done)} value{'s' * (len(done) > 1)} forward: {', '.join(done)}")
    return finish(folded)


def _fold_next(graph: Graph, notes: list[str]) -> str | None:
    """Fold the first value that can be; the names of it and its layer, None if there is none."""
    for layer in graph.nodes():
        if layer.kind not in ("conv", "linear") or layer.weight is None:
            continue
        item = producer(graph, layer.data[0])
        affine = None if item is None else read_affine(graph, item)
        if item is None or affine is None or _belongs_to_its_producer(graph, item, affine):
            continue
        reason = _obstacle(graph, item, affine, layer) or _fold(graph, affine, layer)
        if reason is None:
            return f"{item.name} into {layer.name}"
        notes.append(f"{item.name} is not folded into {layer.name}: {reason}")
    return None


def _belongs_to_its_producer(graph: Graph, item: GraphNode, affine: Affine) -> bool:
    before = producer(graph, affine.source)
    kinds = ("conv", "conv_transposed", "linear")
    return item.kind != "conv" and before is not None and before.kind in kinds and is_read_once(graph, before.node)


def _obstacle(graph: Graph, item: GraphNode, affine: Affine, layer: GraphNode) -> str | None:
    """Why a gain and shift cannot be folded into the layer that reads them, None if they can."""
    assert item.shape is not None
    assert layer.weight is not None
    axis = len(item.shape) - 1 if layer.kind == "linear" else layer.channel_axis
    if affine.axis is not None and affine.axis != axis:
        return "it changes another axis than the layer's input channels"
    if not is_read_once(graph, item.node):
        return f"the output of {item.name} is also used elsewhere"
    reason = kernel_obstacle(graph, layer)
    if reason is not None:
        return reason
    if layer.kind == "conv" and affine.shift.any() and pads(layer):
        return "the layer pads its input with zeros, which the shift does not reach"
    if graph.tensor(layer.weight).dtype != item.dtype:
        return "value and kernel have different types"
    return None


def _fold(graph: Graph, affine: Affine, layer: GraphNode) -> str | None:
    reason = absorb_affine(graph, affine, layer)
    if reason is None:
        layer.node.update_arg(0, affine.source)
    return reason
