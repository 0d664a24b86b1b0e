"""Makes the shortcut around a convolution part of its kernel; the float function stays the same."""

from __future__ import annotations

from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument
from detent.graph.shapes import concrete_shape
from detent.transforms.edits import FOLDED_NORM, finish, is_read_once, kernel_is_shared, per_axis, producer, set_kernel

__all__ = ["collapse_residual"]


def collapse_residual(graph: Graph) -> Graph:
    """A graph in which `conv(x) + x` is one convolution, whose kernel has 1 added where it meets x itself.

    Output channel o at position t meets input channel o at position t in the entry
    `W[o, o mod (C_in / groups), padding / dilation]`. That entry exists if the convolution keeps the shape of its input
    with stride 1 and its padding is a multiple of its dilation; groups and depthwise kernels are no obstacle, since o
    is in its own group. (Residual collapsing as in Bhardwaj et al. 2022, arXiv:2103.09404, section 3.) A sum that
    cannot be collapsed stays, and a note says why.

    Args:
        graph: any captured network.
    """
    if not any(_layer_with_shortcut(graph, total) for total in graph.nodes()):
        return graph
    collapsed = graph.copy()
    done: list[str] = []
    for total in collapsed.nodes():
        layer = _layer_with_shortcut(collapsed, total)
        if layer is None:
            continue
        centre = _obstacle_or_centre(collapsed, total, layer)
        reason = centre if isinstance(centre, str) else _collapse(collapsed, total, layer, centre)
        if reason is None:
            done.append(f"{total.name} into {layer.name}")
        else:
            collapsed.notes.append(f"the shortcut around {layer.name} is not collapsed: {reason}")
    if done:
        collapsed.notes.append(f"collapsed {len(done)} shortcut{'s' * (len(done) > 1)}: {', '.join(done)}")
    return finish(collapsed)


def _layer_with_shortcut(graph: Graph, total: GraphNode) -> GraphNode | None:
    """The convolution with a stored kernel of which a sum adds the output to the input."""
    if total.kind != "add" or len(total.data) != 2:
        return None
    for branch, shortcut in (total.data, total.data[::-1]):
        layer = producer(graph, branch)
        if layer is not None and layer.kind == "conv" and layer.weight is not None and layer.data[0] is shortcut:
            return layer
    return None


def _obstacle_or_centre(graph: Graph, total: GraphNode, layer: GraphNode) -> tuple[int, ...] | str:
    """Position in the kernel that meets the output's own position, or why there is none."""
    assert layer.weight is not None
    if argument(total.node, "alpha") != 1:
        return "the sum is weighted"
    if not is_read_once(graph, layer.node):
        return f"the output of {layer.name} is also used elsewhere"
    if layer.shape != concrete_shape(layer.data[0]) or layer.shape != total.shape:
        return "it changes the shape of its input"
    if kernel_is_shared(graph, layer):
        return f"the kernel of {layer.name} is also used elsewhere"
    if layer.bias is None and argument(layer.node, "bias") is not None:
        return f"the bias of {layer.name} is computed by the network"
    if graph.tensor(layer.weight).dtype != total.dtype:
        return "kernel and sum have different types"
    sizes = concrete_shape(layer.weight)[2:]
    dilations = per_axis(layer, "dilation")
    if any(stride != 1 for stride in per_axis(layer, "stride")):
        return "it has a stride"
    centre = []
    for pad, step, size in zip(_paddings(layer, sizes, dilations), dilations, sizes, strict=True):
        if pad % step or pad // step >= size:
            return "no entry of its kernel meets the position of its output"
        centre.append(pad // step)
    return tuple(centre)


def _paddings(layer: GraphNode, sizes: tuple[int, ...], dilations: list[int]) -> list[int]:
    """Zeros before the first entry along each axis."""
    padding = argument(layer.node, "padding")
    if padding == "same":  # of an odd number of zeros, the one left over goes behind
        return [step * (size - 1) // 2 for step, size in zip(dilations, sizes, strict=True)]
    return [0] * len(sizes) if padding == "valid" else per_axis(layer, "padding")


def _collapse(graph: Graph, total: GraphNode, layer: GraphNode, centre: tuple[int, ...]) -> str | None:
    assert layer.weight is not None
    weight = graph.tensor(layer.weight).detach().double().clone()
    for output in range(len(weight)):
        weight[output, output % weight.shape[1]][centre] += 1
    bias = None if layer.bias is None else graph.tensor(layer.bias)
    reason = set_kernel(graph, layer, weight, bias)
    if reason is None:
        layer.node.meta.pop(FOLDED_NORM, None)
        total.node.replace_all_uses_with(layer.node)
        graph.module.graph.erase_node(total.node)
    return reason
