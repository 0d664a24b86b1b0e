"""The part of a network that a change reaches, as a network of its own that starts from float values.

Everything it reads from outside is a value of the float network or a constant. Several candidates run as one batch
where copies of the batch can follow each other along axis 0; whether an operator treats them as it should is tried
beforehand, since shapes do not tell (an index made of positions in the batch would look into the first copy).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx, nn

from detent.errors import CalibrationError
from detent.graph import Graph, GraphNode
from detent.graph.executor import Executor
from detent.graph.layouts import BatchLayout
from detent.graph.names import NAME
from detent.graph.shapes import is_tensor
from detent.records.grid import Grid
from detent.sensitivity.candidates import KernelChange, Slot
from detent.sensitivity.replaced import Changed, Repeated, Rounded, WithKernel

__all__ = ["Downstream", "FloatValues", "Network"]

_TRIED: Final = 3
"""Samples that operators are tried on."""


class Network:
    """What parts of a float network are made from.

    Args:
        graph: the network.
        points: the nodes whose values are compared.
    """

    def __init__(self, graph: Graph, points: Sequence[fx.Node]) -> None:
        self.graph = graph
        self.points = {node: place for place, node in enumerate(points)}
        self.nodes = [node for node in graph.module.graph.nodes if node.op != "output"]
        self.batch = {item.node: item.batch for item in graph.nodes() if item.batch is not None}
        self.varying: set[fx.Node] = set()
        for node in self.nodes:
            if node.op == "placeholder" or any(source in self.varying for source in node.all_input_nodes):
                self.varying.add(node)
        self.seen: set[fx.Node] = set(points)
        for node in reversed(self.nodes):
            if node in self.seen:
                self.seen.update(node.all_input_nodes)
        constants = [node for node in self.nodes if node not in self.varying]
        self.constants: dict[fx.Node, Any] = {}
        executor = Executor(graph.module, constants, graph.name_of)
        executor.show_constants(lambda place, value: self.constants.update({constants[place]: value}))

    def reached(self, roots: Sequence[fx.Node]) -> set[fx.Node]:
        """What is computed from the values of some nodes."""
        found = set(roots)
        strictly = set()
        for node in self.nodes:
            if any(source in found for source in node.all_input_nodes):
                found.add(node)
                strictly.add(node)
        return strictly

    def float_values(self, nodes: Sequence[fx.Node]) -> FloatValues:
        """What computes the values of nodes for a batch."""
        return FloatValues(Executor(self.graph.module, nodes, self.graph.name_of), nodes)

    def stackable(self, batch: Sequence[torch.Tensor]) -> set[fx.Node]:
        """The operators that treat copies of a batch that follow each other as they treat each alone."""
        if not self.graph.batch.dynamic:
            return set()
        few = [
            tensor if spec.batch_axis is None else tensor.narrow(0, 0, min(_TRIED, len(tensor)))
            for tensor, spec in zip(batch, self.graph.inputs, strict=True)
        ]
        tensors = [node for node in self.nodes if node in self.varying and node in self.seen and is_tensor(node)]
        if min((len(tensor) for tensor in few if tensor.dim()), default=0) < 2:
            return set()
        values = self.float_values(tensors)(few)
        tried = [node for node in tensors if node.op == "call_function" and self._fits(node)]
        builder = _Builder(self, copies=1)
        executor = builder.executor([builder.copy(node) for node in tried])
        # The first copy is of other samples, which an operator that mixes copies would bring into the second.
        given = [
            torch.cat([values[node].roll(1, 0), values[node]]) if _leads(self.batch.get(node)) else values[node]
            for node in builder.sources
        ]
        found = set()
        try:
            for place, value in executor.walk(given):
                wanted = values[tried[place]]
                if len(value) == 2 * len(wanted) and _close(value[len(wanted) :], wanted):
                    found.add(tried[place])
        except CalibrationError:
            return set()
        return found

    def _fits(self, node: fx.Node) -> bool:
        """Whether copies can follow each other in all tensors that an operator reads and in what it makes.

        Operators may not survive inputs of different batches.
        """
        return _leads(self.batch.get(node)) and all(
            source not in self.batch or _leads(self.batch[source]) for source in self._tensors_read(node)
        )

    def _tensors_read(self, node: fx.Node) -> Iterator[fx.Node]:
        """Tensors that a node reads, by way of tuples and sizes too."""
        for source in node.all_input_nodes:
            if source in self.varying and source.op != "placeholder" and not is_tensor(source):
                yield from self._tensors_read(source)
            elif source in self.varying:
                yield source

    def can_stack(self, slot: Slot, users: Sequence[GraphNode], stackable: Set[fx.Node]) -> bool:
        """Whether the candidates of a slot can run as one batch."""
        roots = [*(item.node for item in users), *(self.graph.find(name).node for name in slot.grids)]
        inputs = [source for item in users for source in item.node.all_input_nodes if source in self.varying]
        if len(inputs) != len(users) or not all(_leads(self.batch.get(node)) for node in roots):
            return False
        computed = self.reached(roots) | {item.node for item in users}
        return all(node in stackable for node in computed if node in self.seen and is_tensor(node))


class FloatValues:
    """Computes values of the float network.

    Args:
        executor: of the network.
        nodes: that it shows.
    """

    def __init__(self, executor: Executor, nodes: Sequence[fx.Node]) -> None:
        self.executor = executor
        self._nodes = nodes

    def __call__(self, batch: Sequence[torch.Tensor]) -> dict[fx.Node, torch.Tensor]:
        """The values for a batch.

        Raises:
            CalibrationError: an operator failed; names the layer.
        """
        return {self._nodes[place]: value for place, value in self.executor.walk(batch)}


@dataclass(frozen=True)
class Downstream:
    """The part of a network that candidates change.

    Args:
        executor: runs it.
        sources: the float values it starts from.
        places: place among the points of each value it shows.
        copies: candidates that it runs at once.
    """

    executor: Executor
    sources: tuple[fx.Node, ...]
    places: tuple[int, ...]
    copies: int

    @classmethod
    def of(cls, network: Network, slot: Slot, users: Sequence[GraphNode], places: Sequence[int]) -> Downstream:
        """What some of the candidates of a slot change.

        Args:
            network: the float network.
            slot: the slot.
            users: the layers that use its kernel.
            places: of the candidates among its widths; several only if the slot `can_stack`.
        """
        layers = {item.node: item for item in users}
        grids = {network.graph.find(name).node: [known[at] for at in places] for name, known in slot.grids.items()}
        builder = _Builder(network, len(places))
        reached = network.reached([*layers, *grids])
        for node in network.nodes:
            if node not in network.seen:
                continue
            if node in layers:
                builder.change(layers[node], [slot.changes[at] for at in places])
            elif node in reached:
                builder.made[node] = builder.copy(node)
            if node in grids:
                builder.round(node, grids[node])
        shown = [node for node in network.points if node in builder.made]
        executor = builder.executor([builder.made[node] for node in shown])
        return cls(executor, tuple(builder.sources), tuple(network.points[node] for node in shown), len(places))

    def walk(self, values: Mapping[fx.Node, torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """Run it and stop at each point, with the point's place and its values, one candidate after the other.

        Raises:
            CalibrationError: an operator failed; names the layer.
        """
        for index, value in self.executor.walk([values[source] for source in self.sources]):
            yield self.places[index], value


class _Builder:
    """Makes a network of copies of nodes.

    Args:
        network: what they are copied from.
        copies: candidates that follow each other in the values that are made.
    """

    def __init__(self, network: Network, copies: int) -> None:
        self._network = network
        self._copies = copies
        self._graph = fx.Graph()
        self._attributes: dict[str, Any] = {}
        self._read: dict[fx.Node, fx.Node] = {}
        self.made: dict[fx.Node, fx.Node] = {}
        self.sources: dict[fx.Node, fx.Node] = {}

    def copy(self, node: fx.Node) -> fx.Node:
        """The same operator, which reads what was made, or else float values."""
        return self._graph.node_copy(node, self._reading)

    def change(self, layer: GraphNode, changes: Sequence[KernelChange]) -> None:
        """The layer with other kernels."""
        assert layer.op is not None
        assert layer.weight is not None
        altered = WithKernel(layer)
        data = altered.given[altered.data]
        module = Changed(layer, self._network.constants[layer.weight], changes, copied=data in self.made)
        # The module has kernels of its own, and makes what it needs of data that no candidate changes.
        others = {key: value for key, value in altered.given.items() if key not in (altered.data, altered.weight)}
        arguments = {key: fx.node.map_arg(value, self._reading) for key, value in others.items()}
        self.made[layer.node] = self._call(module, (self._unrepeated(data),), arguments, layer.node)

    def round(self, node: fx.Node, grids: Sequence[Grid]) -> None:
        """The value, made anew or float, rounded."""
        module = Rounded(grids, copied=node in self.made)
        self.made[node] = self._call(module, (self._unrepeated(node),), {}, node)

    def executor(self, watched: Sequence[fx.Node]) -> Executor:
        """The finished network."""
        module = _Uncompiled(self._attributes, self._graph)
        return Executor(module, watched, lambda node: str(node.meta.get(NAME, node.name)))

    def _unrepeated(self, node: fx.Node) -> fx.Node:
        """What a module reads that makes of one value what each candidate needs."""
        if node in self.made:
            return self.made[node]
        return self._reading(node) if node in self._network.constants else self._source(node)

    def _reading(self, node: fx.Node) -> fx.Node:
        if node in self.made:
            return self.made[node]
        if node not in self._read:
            self._read[node] = self._outside(node)
        return self._read[node]

    def _outside(self, node: fx.Node) -> fx.Node:
        """What was not made: a constant, a float value for every candidate, or a size or tuple, which are computed."""
        if node in self._network.constants:
            name = self._attribute(self._network.constants[node])
            return self._graph.create_node("get_attr", name)
        if node.op != "placeholder" and not is_tensor(node):
            return self.copy(node)
        source = self._source(node)
        if self._copies == 1 or not _leads(self._network.batch.get(node)):
            return source
        return self._call(Repeated(self._copies), (source,), {}, node)

    def _source(self, node: fx.Node) -> fx.Node:
        if node not in self.sources:
            self.sources[node] = self._graph.create_node("placeholder", f"source_{len(self.sources)}")
        return self.sources[node]

    def _call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], node: fx.Node) -> fx.Node:
        call = self._graph.create_node("call_module", self._attribute(module), args, kwargs)
        call.meta = dict(node.meta)
        return call

    def _attribute(self, value: Any) -> str:
        name = f"part_{len(self._attributes)}"
        self._attributes[name] = value
        return name


class _Uncompiled(fx.GraphModule):
    """A graph module that is only walked: making its code would take longer than building it."""

    def recompile(self) -> Any:
        return None


def _leads(batch: BatchLayout | None) -> bool:
    """Whether copies of a batch can follow each other in a value."""
    return batch is not None and batch.axis == 0 and batch.ordered and batch.rows > 0


def _close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    largest = float(wanted.abs().nan_to_num(posinf=0).max()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)
