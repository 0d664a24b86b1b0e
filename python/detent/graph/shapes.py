"""Shapes of the values of a captured graph: symbolic where the batch is dynamic, concrete on demand."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["concrete_shape", "concrete_size", "is_float", "is_tensor", "value_of"]


def value_of(node: fx.Node) -> Any:
    """What tracing recorded of a node's value: a tensor without data, a tuple of them, a symbolic number, or None."""
    return node.meta.get("val")


def is_tensor(node: Any) -> bool:
    """Whether the node's value is one tensor."""
    return isinstance(node, fx.Node) and isinstance(value_of(node), torch.Tensor)


def is_float(node: Any) -> bool:
    """Whether the node's value is a floating-point tensor, or a tuple with one in it."""
    if not isinstance(node, fx.Node):
        return False
    value = value_of(node)
    members = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(member, torch.Tensor) and member.is_floating_point() for member in members)


def concrete_size(size: int | torch.SymInt) -> int:
    """A size with every symbol replaced by its value in the captured example.

    Raises:
        ValueError: the size depends on the values of a tensor.
    """
    if isinstance(size, int):
        return size
    node = size.node
    if not node.has_hint():
        raise ValueError(f"the size {size} has no value in the example")
    return int(node.hint)


def concrete_shape(node: Any) -> tuple[int, ...]:
    """Shape of a node's tensor with the example's batch size.

    Raises:
        ValueError: the node's value is not a tensor, or its shape depends on the values of one.
    """
    if not is_tensor(node):
        raise ValueError(f"{node} is not a tensor in the captured graph")
    return tuple(concrete_size(size) for size in value_of(node).shape)
