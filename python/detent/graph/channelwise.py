"""Which values may have a step for each channel: those that nothing sums over their channels.

In a sum of products a step that differs along the summed axis cannot be taken out, so a convolution, a linear layer or
a matrix product needs one step for all channels of its input. A depthwise convolution and operators that keep channels
apart do not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import fx

from detent.graph.graph import GraphNode
from detent.graph.roles import op_name

__all__ = ["obstacle_to_channels", "steps_of_outputs"]

_APART: Final = frozenset(
    {"activation", "elementwise", "add", "sub", "mul", "div", "maximum", "minimum", "pool", "resize", "pad", "cat"}
    | {"mean", "sum"}
)
"""Kinds of operation that keep channels apart, or whose output has no channel axis where they do not."""
_IN_PLACE: Final = frozenset(
    {"reshape", "view", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "slice", "narrow"}
    | {"permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "contiguous", "clone", "alias"}
    | {"detach", "to", "_to_copy", "type_as", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
)
"""Operators that only move values and leave channels in order, if the output still has that many channels."""


def obstacle_to_channels(
    nodes: Mapping[fx.Node, GraphNode], outputs: Collection[fx.Node], value: GraphNode
) -> str | None:
    """Why a value must have one step for all channels; None if it may have one for each.

    Args:
        nodes: all values of the graph.
        outputs: those the network returns: they have one scale in files.
        value: the value that is quantized.
    """
    if value.kind == "input":
        return "it is an input of the network"
    if value.channel_axis is None or value.shape is None:
        return "it has no channel axis"
    return _obstacle_among_readers(nodes, outputs, value, value.shape[value.channel_axis])


def _obstacle_among_readers(
    nodes: Mapping[fx.Node, GraphNode], outputs: Collection[fx.Node], value: GraphNode, channels: int
) -> str | None:
    if value.node in outputs:
        return "it is an output of the network"
    for user in value.node.users:
        reader = nodes.get(user)
        # Operators without a role compute with real numbers.
        if reader is None or reader.op is None:
            continue
        if reader.preserving:
            moves = reader.kind == "preserving" and op_name(user) not in _IN_PLACE
            reason = "it is rearranged" if moves or _channels(reader) != channels else None
            reason = reason or _obstacle_among_readers(nodes, outputs, reader, channels)
        else:
            reason = None if _keeps_apart(reader, value, channels) else "it is summed over its channels"
        if reason is not None:
            return reason
    return None


def _keeps_apart(reader: GraphNode, value: GraphNode, channels: int) -> bool:
    if reader.kind in ("conv", "conv_transposed"):
        stored = reader.weight is not None and reader.data == (value.node,)
        return stored and reader.groups == channels
    return reader.kind in _APART and reader.channel_axis is not None


def _channels(node: GraphNode) -> int | None:
    return None if node.channel_axis is None or node.shape is None else node.shape[node.channel_axis]


def steps_of_outputs(steps: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    """Steps of a layer's input `[1]`, or `[C_in]` of a depthwise layer, for each of its output channels.

    Args:
        steps: of the input.
        channels: outputs of the layer; those of one input channel are neighbours.
    """
    return steps if len(steps) == 1 else np.repeat(steps, channels // len(steps))
