"""Inputs and batch of a captured graph, read off its placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from detent.config import Preprocessing
from detent.errors import CaptureError
from detent.graph.shapes import concrete_shape, is_tensor, value_of

__all__ = ["BatchSpec", "InputSpec", "read_signature", "with_network_types"]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One tensor the network takes.

    Args:
        name: the parameter's name, with keys or positions appended where the user passes a dict or a tuple.
        key: the last dict key, or None for a positional input; a batch given as a dict is matched by it or the name.
        shape: shape in the captured example.
        dtype: element type.
        batch_axis: the axis of samples, None for an input that is the same for all samples.
        preprocessing: what the network does to raw input before its own first operator; None if it takes what the
            user's model takes.
    """

    name: str
    key: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_axis: int | None
    preprocessing: Preprocessing | None = None

    @property
    def raw_dtype(self) -> torch.dtype | None:
        """The integer type raw values may be handed over in besides `dtype`; None if there is none."""
        if self.preprocessing is None or not self.preprocessing.whole:
            return None
        dtype: torch.dtype = getattr(torch, self.preprocessing.dtype)
        return dtype


def with_network_types(inputs: Sequence[InputSpec], arguments: Any) -> Any:
    """Raw integers among the arguments of a call as the numbers the network computes with; the rest as it is.

    Where an input of the network is itself of that integer type, nothing tells the two apart and nothing is changed.
    """
    kept = {spec.dtype for spec in inputs}
    types = {spec.raw_dtype: spec.dtype for spec in inputs if spec.raw_dtype not in (None, *kept)}
    if not types:
        return arguments
    return pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(types.get(leaf.dtype, leaf.dtype)), arguments)


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """How many samples one call takes.

    Args:
        size: samples in the captured example; the only size that runs if the batch is not dynamic.
        symbol: name of the symbolic size, None if the batch is fixed.
    """

    size: int
    symbol: str | None

    @property
    def dynamic(self) -> bool:
        """Whether any number of samples can be run."""
        return self.symbol is not None


def read_signature(graph: fx.Graph) -> tuple[tuple[InputSpec, ...], BatchSpec]:
    """The tensor inputs in placeholder order, and the batch: the symbol, or else the length, that axis 0 starts with.

    Raises:
        CaptureError: the graph takes no tensor.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder" and is_tensor(node)]
    with_axes = [node for node in placeholders if value_of(node).dim()]
    if not placeholders:
        raise CaptureError("the captured model takes no tensor", remedy="capture a module that has tensor inputs")
    symbol = next((s for s in map(_leading_symbol, with_axes) if s is not None), None)
    size = next((concrete_shape(n)[0] for n in with_axes if symbol in (None, _leading_symbol(n))), 1)
    keys = _keys(graph)
    specs = []
    for node in placeholders:
        shape = concrete_shape(node)
        batched = _leading_symbol(node) == symbol if symbol is not None else shape[:1] == (size,)
        specs.append(
            InputSpec(
                name=str(node.target),
                key=keys.get(node),
                shape=shape,
                dtype=value_of(node).dtype,
                batch_axis=0 if batched else None,
            )
        )
    return tuple(specs), BatchSpec(size=size, symbol=symbol)


def _leading_symbol(node: fx.Node) -> str | None:
    shape = value_of(node).shape
    return str(shape[0]) if len(shape) and isinstance(shape[0], torch.SymInt) else None


def _keys(graph: fx.Graph) -> dict[fx.Node, str]:
    """Dict keys of inputs that were passed in a dict or by keyword.

    Export joins the path of a nested input with underscores; the codegen's input spec has the true keys.
    """
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None:
        return {}
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    skeleton = pytree.tree_unflatten(list(range(len(nodes))), info.in_spec)
    paths, _ = pytree.tree_flatten_with_path(skeleton)
    return {
        nodes[index]: str(path[-1].key) for path, index in paths if path and isinstance(path[-1], pytree.MappingKey)
    }
