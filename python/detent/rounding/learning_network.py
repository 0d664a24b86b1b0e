"""The quantized network with kernels, biases and steps that are given to each run, and its blocks made ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import fx

import detent.graph.operators  # noqa: F401  (registers torch.ops.detent)
from detent.graph import Graph
from detent.graph.executor import Executor
from detent.graph.names import NAME
from detent.graph.roles import argument
from detent.rounding.blocks import Block
from detent.rounding.dropping import Dropping

__all__ = ["BlockRun", "Given", "LearningNetwork", "whole_network"]

_GRID_OPS: Final = (torch.ops.detent.fake_quantize.default, torch.ops.detent.lut_fake_quantize.default)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Tensors that a run of a block is given.

    Args:
        kernels: by layer.
        biases: `[C_out]` by layer.
        scales: of values' grids, by value.
    """

    kernels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    biases: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scales: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def tensors(self) -> list[torch.Tensor]:
        """All of them in a fixed order."""
        return [*self.kernels.values(), *self.biases.values(), *self.scales.values()]

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Given:
        """The same with other tensors, in that order."""
        rest = iter(tensors)
        return Given(
            kernels={name: next(rest) for name in self.kernels},
            biases={name: next(rest) for name in self.biases},
            scales={name: next(rest) for name in self.scales},
        )


class LearningNetwork:
    """The quantized network, ready for its blocks to be learned.

    Args:
        graph: the float network.
        quantized: it with grids, see `detent.quantized`; changed: its layers read kernels and biases that are given.
        layers: those whose kernels are learned.
        biased: those of them whose biases may change.
    """

    def __init__(self, graph: Graph, quantized: fx.GraphModule, layers: Sequence[str], biased: Sequence[str]) -> None:
        self.graph, self.module = graph, quantized
        self._computed: dict[str, fx.Node] = {}
        self._settled: dict[str, fx.Node] = {}
        for node in quantized.graph.nodes:
            name = node.meta.get(NAME)
            if name is None or name not in graph:
                continue
            if node.target in _GRID_OPS:
                self._settled[name] = node
            elif node.target == graph.find(name).node.target:
                self._computed.setdefault(name, node)
        self.biases = self._stored_biases(biased)
        self._kernels = {name: self._give(name, "weight") for name in layers}
        self._biases = {name: self._give(name, "bias") for name in biased}

    def _stored_biases(self, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the layers add to their channels, zeros where that is nothing."""
        read = {name: argument(self._computed[name], "bias") for name in layers}
        nodes = [node for node in read.values() if node is not None]
        executor = Executor(self.module, nodes, str)
        values: dict[fx.Node, torch.Tensor] = {}
        executor.show_constants(lambda index, value: values.__setitem__(nodes[index], value))
        found = {}
        for name, node in read.items():
            layer = self.graph.find(name)
            assert layer.shape is not None
            assert layer.channel_axis is not None
            channels = layer.shape[layer.channel_axis]
            found[name] = torch.zeros(channels) if node is None else values[node].clone().expand(channels).contiguous()
        return found

    def _give(self, name: str, role: str) -> fx.Node:
        """A new input of the network in the place of a layer's kernel or bias."""
        call = self._computed[name]
        names = [parameter.name for parameter in call.target._schema.arguments]  # type: ignore[union-attr]
        place = names.index(role)
        with self.module.graph.inserting_before(call):
            node = self.module.graph.call_function(_not_given)
        arguments = [argument(call, one) for one in names]
        arguments[place] = node
        call.args, call.kwargs = tuple(arguments), {}
        return node

    def settled(self, value: str) -> fx.Node:
        """What the readers of a value read: it on its grid, if it has one."""
        return self._settled.get(value, self._computed[value])

    def has_grid(self, value: str) -> bool:
        """Whether a value passes a grid in this network."""
        return value in self._settled

    def nodes_of(self, given: Given) -> list[fx.Node]:
        """The nodes that stand for what is given, in its order."""
        return [
            *(self._kernels[name] for name in given.kernels),
            *(self._biases[name] for name in given.biases),
            *(self._settled[name].args[1] for name in given.scales),  # type: ignore[list-item]
        ]

    def run_of(
        self,
        block: Block,
        *,
        given: Given | None = None,
        watched: Sequence[str] | None = None,
        gradients: bool = False,
        functions: Mapping[fx.Node, Callable[..., Any]] | None = None,
    ) -> BlockRun:
        """A block made ready to run.

        Args:
            block: of the network.
            given: names what each run is given besides the block's inputs.
            watched: the values wanted; None takes those compared.
            gradients: record what gradients need.
            functions: what computes some nodes in place of their operators.
        """
        return BlockRun(
            self.module,
            [self.settled(name) for name in block.inputs],
            {name: self.settled(name) for name in (block.compared if watched is None else watched)},
            lambda node: str(node.meta.get(NAME, node.name)),
            given=self.nodes_of(given or Given()),
            gradients=gradients,
            functions=functions,
        )

    def drops(self, values: Sequence[str], dropping: Dropping) -> dict[fx.Node, Callable[..., Any]]:
        """For the grids of some values, what rounds with dropping."""
        nodes = [self._settled[name] for name in values if name in self._settled]
        return {node: partial(dropping.round, node.target) for node in nodes}  # type: ignore[arg-type]


def _not_given() -> None:
    """Stands in the network for what every run is given."""
    raise AssertionError("a kernel or bias was not given")


class BlockRun:
    """A block of a network made ready to run from what is kept before it.

    Args:
        module: the network.
        inputs: the nodes that stand for the block's inputs.
        watched: the nodes of the values wanted, by name.
        describe: names a node for errors.
        given: nodes that each run is given besides the inputs.
        gradients: record what gradients need.
        functions: what computes some nodes in place of their operators.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        inputs: Sequence[fx.Node],
        watched: Mapping[str, fx.Node],
        describe: Callable[[fx.Node], str],
        *,
        given: Sequence[fx.Node] = (),
        gradients: bool = False,
        functions: Mapping[fx.Node, Callable[..., Any]] | None = None,
    ) -> None:
        self._names = list(watched)
        self._executor = Executor(
            module,
            list(watched.values()),
            describe,
            gradients=gradients,
            given=[*inputs, *given],
            functions=functions,
        )

    @property
    def draws_random_numbers(self) -> bool:
        """Whether an operator reads torch's random state."""
        return self._executor.draws_random_numbers

    def __call__(
        self, network_inputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], given: Sequence[torch.Tensor] = ()
    ) -> dict[str, torch.Tensor]:
        """The values wanted, by name."""
        return {self._names[place]: value for place, value in self._executor.walk(network_inputs, [*inputs, *given])}


def whole_network(graph: Graph, module: fx.GraphModule | None = None) -> BlockRun:
    """A network with all its floating-point outputs, by their names.

    Args:
        graph: the float network.
        module: the quantized one, whose values keep their names; None takes the float one.
    """
    names = [item.name for item in graph.float_outputs()]
    if module is None:
        return BlockRun(graph.module, [], {name: graph.find(name).node for name in names}, graph.name_of)
    network = LearningNetwork(graph, module, [], [])
    return BlockRun(module, [], {name: network.settled(name) for name in names}, graph.name_of)
