"""Which values are observed, and which of their rows belong to real samples rather than to padding."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import fx

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.graph.graph import Graph, GraphNode

__all__ = ["Observation", "observed_values"]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One value to observe.

    Args:
        value: the graph's value.
        constant: it does not depend on the inputs and is seen once.
        attributed: each row belongs to one sample and samples come in order, so rows of padding can be left out.
        batch_axis: axis that holds the samples, moved to the front before counting; None if there is none and the whole
            value counts as one sample.
        rows: rows along `batch_axis` per sample.
        channel_axis: channel axis of what is counted, None if there is none.
    """

    value: GraphNode
    constant: bool
    attributed: bool
    batch_axis: int | None
    rows: int
    channel_axis: int | None

    @property
    def name(self) -> str:
        """The value's name in the graph."""
        return self.value.name

    def rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The value with its samples outermost in memory, as the kernel reads it: a view where that is possible."""
        moved = tensor.unsqueeze(0) if self.batch_axis is None else tensor.movedim(self.batch_axis, 0)
        # Dense with samples outermost are the plain and the channels-last layout; others are rare and copied.
        dense = moved.is_contiguous() or (moved.ndim == 4 and moved.is_contiguous(memory_format=torch.channels_last))
        return moved if dense else moved.contiguous()


def observed_values(graph: Graph, names: Collection[str] | None, notes: list[str]) -> list[Observation]:
    """The float32 values of a graph that a target may quantize: inputs, and outputs of operators that make new values.

    Args:
        graph: the captured model.
        names: the values wanted, by name; None for all.
        notes: receives what cannot be observed.

    Raises:
        ConfigError: a name is not a value of the graph, or the value cannot be observed.
    """
    observable = [value for value in graph.nodes() if value.dtype == torch.float32]
    if names is not None:
        for name in names:
            if name not in graph:
                raise unknown_name("value", name, (value.name for value in observable))
            if graph.find(name).dtype != torch.float32:
                raise ConfigError("only float32 values can be observed", where=f"value {name!r}")
        chosen = [value for value in observable if value.name in names]
    else:
        chosen = [value for value in observable if not value.preserving]
        for value in graph.nodes():
            if value.is_float and value.dtype != torch.float32:
                notes.append(f"{value.name} computes in {str(value.dtype).removeprefix('torch.')} and was not observed")
    varying = _depending_on_samples(graph)
    attributable = _attributable(graph, varying)
    return [
        _observation(value, constant=value.node not in varying, attributed=value.node in attributable)
        for value in chosen
    ]


def _depending_on_samples(graph: Graph) -> set[fx.Node]:
    """The nodes that an input with a batch axis can change; of the others every batch shows the same."""
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    batched = {
        node for node, spec in zip(placeholders, graph.inputs, strict=True) if spec.batch_axis is not None
    } or set(placeholders)
    found: set[fx.Node] = set()
    for node in graph.module.graph.nodes:
        if node in batched or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _attributable(graph: Graph, varying: set[fx.Node]) -> set[fx.Node]:
    """The nodes each of whose rows is made from one sample, samples in order.

    The shape of a value alone does not tell: `cat([a, b]).reshape(n, -1)` has one row per sample, but mixed ones. So
    all that a node is made from must be in order too.
    """
    layouts = {value.node: value.batch for value in graph.nodes() if value.shape is not None}
    found: set[fx.Node] = set()
    for node in graph.module.graph.nodes:
        layout = layouts.get(node)
        ordered = layout is not None and layout.ordered is True and layout.rows > 0
        alone = node not in layouts or ordered  # sizes and tuples of tensors are what their operands are
        if node not in varying or (alone and all(source in found for source in node.all_input_nodes)):
            found.add(node)
    return found


def _observation(value: GraphNode, *, constant: bool, attributed: bool) -> Observation:
    layout = None if constant else value.batch
    axis = None if layout is None else layout.axis
    channel = value.channel_axis
    if channel is not None:
        if axis is None or channel < axis:
            channel += 1
        elif channel == axis:
            channel = None
    return Observation(
        value=value,
        constant=constant,
        attributed=attributed and not constant,
        batch_axis=axis,
        rows=1 if layout is None else layout.rows,
        channel_axis=channel,
    )
