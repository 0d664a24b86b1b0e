"""Which values are observed, and how their samples are laid out for counting."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import fx

from detent._registry import unknown_name
from detent.errors import CalibrationError, ConfigError
from detent.graph import BatchLayout, Graph, GraphNode
from detent.graph.biases import observed_axis
from detent.graph.patches import has_rows

__all__ = ["Observation", "observed_values"]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One value to observe.

    Args:
        value: the graph's value.
        constant: no sample can change it, so it is counted once.
        layout: where the samples lie in it; None if it is counted as a whole, because it mixes samples or does not
            depend on them.
        channel_axis: channel axis of what `samples_first` returns, None if there is none.
    """

    value: GraphNode
    constant: bool
    layout: BatchLayout | None
    channel_axis: int | None

    @property
    def name(self) -> str:
        """The value's name in the graph."""
        return self.value.name

    @property
    def attributed(self) -> bool:
        """Whether every element belongs to one sample, so that padding can be left out."""
        return self.layout is not None

    def samples_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """The value as `[samples, ...]`, dense and with samples outermost in memory: a view where that is possible."""
        if self.layout is None:
            rows = tensor.unsqueeze(0)
        elif self.layout.axis == 0 and self.layout.rows == 1:
            rows = tensor
        else:
            rows = self.layout.samples_first(tensor)
        # The plain and the channels-last layout are what the kernel takes; others are rare and copied.
        dense = rows.is_contiguous() or (rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last))
        return rows if dense else rows.contiguous()


def observed_values(graph: Graph, names: Collection[str] | None, notes: list[str]) -> list[Observation]:
    """The float32 values of a graph that a target may quantize: inputs, and outputs of operators that make new values.

    Args:
        graph: the captured model.
        names: the values wanted, by name; None for all.
        notes: receives what cannot be observed.

    Raises:
        CalibrationError: the model has no float32 value at all.
        ConfigError: a name is not a value of the graph, or the value cannot be observed.
    """
    if isinstance(names, str):
        raise ConfigError("`values` must be a list of names, not one string", remedy=f"write [{names!r}]")
    if names is not None and not isinstance(names, Collection):
        raise ConfigError(f"`values` must be a list of names, got {names!r}")
    observable = [value for value in graph.nodes() if value.dtype == torch.float32]
    if names is not None:
        for name in names:
            if name not in graph:
                raise unknown_name("value", name, (value.name for value in observable))
            if graph.find(name).dtype != torch.float32:
                raise ConfigError("only float32 values can be observed", where=f"value {name!r}")
        chosen = [value for value in observable if value.name in names]
    else:
        # A value on its operand's grid is seen there; only a kernel's input also needs means of its own channels.
        read_by_kernels = {value.data[0] for value in graph.nodes() if has_rows(value)}
        chosen = [value for value in observable if not value.preserving or value.node in read_by_kernels]
        for value in graph.nodes():
            if value.is_float and value.dtype != torch.float32:
                notes.append(f"{value.name} computes in {str(value.dtype).removeprefix('torch.')} and was not observed")
    if not chosen:
        raise CalibrationError(
            "there is no float32 value to observe", remedy="convert the model with model.float() before capturing it"
        )
    varying = _depending_on_samples(graph)
    return [_observation(value, constant=value.node not in varying) for value in chosen]


def _depending_on_samples(graph: Graph) -> set[fx.Node]:
    """The nodes that an input with a batch axis can change; of the others every batch shows the same."""
    placeholders = {node.target: node for node in graph.module.graph.nodes if node.op == "placeholder"}
    batched = {placeholders[spec.name] for spec in graph.inputs if spec.batch_axis is not None}
    found = batched or set(placeholders.values())
    for node in graph.module.graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _observation(value: GraphNode, *, constant: bool) -> Observation:
    layout = value.batch
    if constant or (layout is not None and (layout.outer is None or not layout.rows)):
        layout = None
    channel = observed_axis(value)
    if channel is not None:
        if layout is None or channel < layout.axis:
            channel += 1
        elif layout.rows > 1:
            channel += 2  # the batch axis is split into three, one of which goes to the front
    return Observation(value=value, constant=constant, layout=layout, channel_axis=channel)
