"""Clamps: operators that hand values between two limits on and cut off the others."""

from __future__ import annotations

from math import inf
from typing import Final

import torch
from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.roles import argument, op_name

__all__ = ["is_clamp", "limits", "limits_behind"]

_FLAT_OUTSIDE: Final = {"relu": (0.0, inf), "hardswish": (-3.0, inf), "hardsigmoid": (-3.0, 3.0)}
"""Activations that are constant outside of some limits, besides clamps."""


def is_clamp(item: GraphNode) -> bool:
    """Whether an operator clamps to numbers or to stored limits."""
    return item.op is not None and item.op.name in ("relu6", "hardtanh")


def limits(graph: Graph, item: GraphNode) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper limit of a clamp as float64, scalars or one per channel; infinite where there is none."""
    if op_name(item.node) == "relu6":
        return torch.tensor(0.0).double(), torch.tensor(6.0).double()
    names = ("min_val", "max_val") if op_name(item.node) == "hardtanh" else ("min", "max")
    found = []
    for name, missing in zip(names, (-inf, inf), strict=True):
        value = argument(item.node, name)
        if isinstance(value, fx.Node):
            found.append(graph.tensor(value).detach().double())
        else:
            found.append(torch.tensor(missing if value is None else float(value)).double())
    return found[0], found[1]


def limits_behind(graph: Graph, layer: GraphNode) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The limits outside of which nothing sees a value, where all that reads it is constant there; None elsewhere.

    Args:
        graph: the network.
        layer: the value.

    Returns:
        Lower and upper limit, float64 scalars or one per channel.
    """
    users = list(layer.node.users)
    reader = next((node for node in graph.nodes() if node.node is users[0]), None) if len(users) == 1 else None
    if reader is None or reader.op is None or reader.data != (layer.node,):
        return None
    if reader.op.name in _FLAT_OUTSIDE:
        lower, upper = _FLAT_OUTSIDE[reader.op.name]
        return torch.tensor(lower).double(), torch.tensor(upper).double()
    return limits(graph, reader) if is_clamp(reader) else None
