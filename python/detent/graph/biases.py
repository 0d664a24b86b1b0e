"""Biases of layers with a kernel: which can be changed, what tells how, and the steps of their codes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import fx

from detent.graph.axes import axis_summed_by, summed_axis
from detent.graph.graph import Graph, GraphNode
from detent.graph.placement import Placement, WeightPoint
from detent.graph.roles import argument
from detent.graph.shifts import FILL

__all__ = ["bias_input", "correctable_layers", "has_means_of_inputs", "observed_axis", "per_bias_entry"]


def correctable_layers(graph: Graph, placement: Placement) -> dict[str, WeightPoint]:
    """The operations with a quantized kernel whose bias can be changed, in execution order, with their kernels."""
    found = {}
    for point in placement.weights.values():
        for user in map(graph.find, point.users):
            if user.kind in ("conv", "conv_transposed", "linear"):
                computed = user.bias is None and argument(user.node, "bias") is not None
                if not computed and user.channel_axis is not None:
                    found[user.name] = point
    return {node.name: found[node.name] for node in graph.nodes() if node.name in found}


def bias_input(graph: Graph, layer: GraphNode) -> fx.Node:
    """The value whose means tell how a layer's bias is to be corrected: what it reads, without padding.

    Padding that a rewrite took out of the operator is no more part of the data than it was inside.
    """
    value = layer.data[0]
    while FILL in value.meta:
        value = graph.find(graph.name_of(value)).data[0]
    return value


def has_means_of_inputs(graph: Graph, layer: GraphNode) -> bool:
    """Whether what the statistics call channels of a layer's input is what its kernel sums over."""
    name = graph.name_of(bias_input(graph, layer))
    source = graph.find(name) if name in graph else None
    if source is None or source.shape is None or layer.weight is None:
        return False
    return observed_axis(source) == axis_summed_by(layer.node, len(source.shape))


def observed_axis(value: GraphNode) -> int | None:
    """The axis along which statistics of a value keep means.

    That of its channels; where they were merged with other axes, what a kernel sums over, whose means serve its bias.
    """
    return value.channel_axis if value.channel_axis is not None else summed_axis(value.node)


def per_bias_entry(steps: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    """Kernel steps `[1]` or one for each of a bias' `channels` entries.

    The kernel of a grouped transposed convolution, `[C_in, C_out / groups, ...]`, holds the channels of one group only:
    its steps serve every group.
    """
    return steps if len(steps) == 1 else np.tile(steps, channels // len(steps))
