"""Which values share the memory of another: views, as torch lays values out."""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch import fx
from torch._ops import OpOverload

from detent.graph.roles import first_argument, op_name
from detent.graph.shapes import concrete_shape, concrete_size, is_tensor, value_of

__all__ = ["viewed"]

_IDENTITIES: Final = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
"""Operators that return their argument when evaluating, without saying so in their schema."""
_COPIES_IF_NEEDED: Final = frozenset({"reshape", "reshape_as", "flatten", "ravel", "contiguous", "to", "type_as"})
"""Operators whose result is their argument's memory only where its order in memory allows."""


def viewed(node: fx.Node) -> fx.Node | None:
    """The value in whose memory `node`'s value lies; None if it has memory of its own.

    A view keeps all of that memory alive, also where it shows a part of it. Items of a tuple of views (`chunk`) are
    views of what was cut.
    """
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        cut = node.args[0]
        return _source(cut) if isinstance(cut, fx.Node) and _returns_views(cut) else None
    if not isinstance(node.target, OpOverload) or not is_tensor(node):
        return None
    source = _source(node)
    if source is None:
        return None
    name = op_name(node)
    if name in _IDENTITIES or name in _COPIES_IF_NEEDED:
        return source if _fits(source, node) else None
    return source if _returns_views(node) else None


def _source(node: fx.Node) -> fx.Node | None:
    value = first_argument(node)
    return value if isinstance(value, fx.Node) and is_tensor(value) else None


def _returns_views(node: fx.Node) -> bool:
    """Whether the operator's schema says that its result is its argument's memory, not written to."""
    if not isinstance(node.target, OpOverload):
        return False
    returned = [item.alias_info for item in node.target._schema.returns]
    return bool(returned) and all(alias is not None and not alias.is_write for alias in returned)


def _fits(source: fx.Node, node: fx.Node) -> bool:
    """Whether the result can be had by reading the source's memory with other strides."""
    before, after = value_of(source), value_of(node)
    if before.dtype != after.dtype:
        return False
    strides = tuple(concrete_size(stride) for stride in before.stride())
    shape, wanted = concrete_shape(source), concrete_shape(node)
    if shape == wanted:
        # `contiguous` and `to` keep the shape: a copy has other strides. A reshape to the same shape never copies.
        return op_name(node) not in ("contiguous", "to") or strides == tuple(map(concrete_size, after.stride()))
    try:
        torch.empty_strided(shape, strides, device="meta").view(wanted)
    except RuntimeError:
        return False
    return True
