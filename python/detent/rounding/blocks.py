"""Blocks: parts of a network that are learned one after the other, each with all its kernels together.

A block is what lies between two places where the network could be cut: residual blocks, halves of a transformer layer,
plain layers. Neighbours of one module of the user's network, such as the three layers of an inverted residual without
a shortcut, are one block where they are few. (Li et al. 2021, BRECQ, arXiv:2102.05426, section 3.2.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final, Literal

import torch
from torch import fx

from detent.graph import Graph, GraphNode
from detent.graph.shapes import is_tensor, value_of

__all__ = ["Block", "Granularity", "find_blocks"]

Granularity = Literal["blocks", "layers", "network"]

_MOST_LAYERS: Final = 6
"""Layers of one block; what cannot be cut into smaller parts at single values is cut where several are alive."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A part of a network.

    Args:
        layers: names of its layers with kernels, in execution order.
        values: names of all values it computes, in execution order.
        inputs: values from before that it reads; the network's own inputs are among its values.
        outputs: values that are read behind it, or returned.
        compared: values at which it is held to the float network.
    """

    layers: tuple[str, ...]
    values: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compared: tuple[str, ...]

    def __str__(self) -> str:
        return self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]} .. {self.layers[-1]}"


def find_blocks(graph: Graph, layers: Collection[str], granularity: Granularity = "blocks") -> list[Block]:
    """The blocks of a network in execution order; what follows the last kernel belongs to the last block.

    Args:
        graph: the network.
        layers: names of layers with kernels; each is in one block, and each block has one.
        granularity: blocks as above, single layers, or all the network in one block that is held to the float one
            where the others end.
    """
    if not layers:
        return []
    cuts = _Cuts(graph, layers)
    if granularity == "layers":
        return cuts.blocks(list(cuts.single_layers()))
    ends = list(cuts.together())
    if granularity == "blocks":
        return cuts.blocks(ends)
    compared = tuple(dict.fromkeys(value for block in cuts.blocks(ends) for value in block.compared))
    return cuts.blocks([len(cuts.nodes)], compared)


class _Cuts:
    """Where a network can be cut: behind its n-th value, for all n."""

    def __init__(self, graph: Graph, layers: Collection[str]) -> None:
        self.nodes = list(graph.nodes())
        self._places = {node.node: place for place, node in enumerate(self.nodes)}
        self._layers = set(layers)
        returned = set(graph.outputs())
        self._varying = _varying(self.nodes)
        # The place behind which no value is read any more.
        self._last = [
            len(self.nodes) if node.node in returned else max(self._readers(node.node), default=place)
            for place, node in enumerate(self.nodes)
        ]

    def _readers(self, node: fx.Node) -> Iterator[int]:
        """Places of the values computed from one, past what is no value of the network."""
        for user in node.users:
            if user in self._places:
                yield self._places[user]

    def _alive(self, end: int) -> list[GraphNode]:
        """Tensors computed before a place that are read from there on; what does not vary is computed again."""
        known = zip(self.nodes[:end], self._last, strict=False)
        return [node for node, last in known if last >= end and node.node in self._varying]

    def _allowed(self, end: int) -> bool:
        """Whether all that is alive there can be kept sample by sample."""
        return all(
            is_tensor(node.node) and node.batch is not None and node.batch.ordered and node.batch.rows == 1
            for node in self._alive(end)
        )

    def _single(self, end: int) -> bool:
        return len(self._alive(end)) == 1

    def single_layers(self) -> Iterator[int]:
        """Cuts before each layer but the first, and at the end."""
        places = [place for place, node in enumerate(self.nodes) if node.name in self._layers]
        for before, place in pairwise(places):
            # As late as possible, so that what only the next layer reads is computed with it, where that can be cut.
            allowed = [end for end in range(place, before, -1) if self._allowed(end)]
            if allowed:
                yield min(allowed, key=lambda end: len(self._alive(end)))
        yield len(self.nodes)

    def _segments(self) -> Iterator[int]:
        """Cuts at single values, the last of each run without a kernel, and at the end."""
        ends = [end for end in range(1, len(self.nodes)) if self._single(end) and self._allowed(end)]
        # A cut stays if there is a kernel between it and the next one, and one before it.
        starts = [*ends, len(self.nodes)]
        seen = False
        for end, following in zip(ends, starts[1:], strict=True):
            seen = seen or self._kernels(0, end) > 0
            if seen and self._kernels(end, following):
                yield end
        yield len(self.nodes)

    def _kernels(self, start: int, end: int) -> int:
        return sum(node.name in self._layers for node in self.nodes[start:end])

    def together(self) -> Iterator[int]:
        """Cuts at single values, with segments of one module together, and long ones cut layer by layer."""
        ends = list(self._segments())
        segments = list(zip([0, *ends], ends, strict=False))
        for module, several in groupby(segments, self._module):
            run = list(several)
            start, end = run[0][0], run[-1][1]
            if module is not None and self._kernels(start, end) <= _MOST_LAYERS:
                yield end
                continue
            for begin, finish in run:
                if self._kernels(begin, finish) > _MOST_LAYERS:
                    yield from (cut for cut in self.single_layers() if begin < cut < finish)
                yield finish

    def _module(self, segment: tuple[int, int]) -> str | None:
        """The module that all layers of a segment are in; None for the whole network or a single layer's list."""
        layers = [node.layer or node.name for node in self.nodes[slice(*segment)] if node.name in self._layers]
        parents = [layer.split(".")[:-1] for layer in layers]
        shared = [part for part, *others in zip(*parents, strict=False) if all(part == other for other in others)]
        return ".".join(shared) or None

    def blocks(self, ends: Sequence[int], compared: tuple[str, ...] = ()) -> list[Block]:
        """The blocks that end at some places. Those without a kernel go with the one before."""
        found: list[Block] = []
        kept = [
            end
            for end, after in zip(ends, [*ends[1:], None], strict=True)
            if after is None or self._kernels(end, after)
        ]
        start = 0
        for end in kept:
            inside = self.nodes[start:end]
            before = self._alive(start)
            read = {source for node in inside for source in node.node.all_input_nodes}
            outputs = tuple(
                node.name
                for node, last in zip(inside, self._last[start:end], strict=True)
                if last >= end and node.node in self._varying
            )
            found.append(
                Block(
                    layers=tuple(node.name for node in inside if node.name in self._layers),
                    values=tuple(node.name for node in inside),
                    inputs=tuple(node.name for node in before if node.node in read),
                    outputs=outputs,
                    compared=compared or self._compared(inside, outputs),
                )
            )
            start = end
        return found

    def _compared(self, inside: Sequence[GraphNode], outputs: Sequence[str]) -> tuple[str, ...]:
        """The floating-point outputs that the block computes, or the last such value where only others go on."""
        known = [
            node.name
            for node in inside
            if node.is_float and node.node in self._varying and node.node.op != "placeholder"
        ]
        return tuple(name for name in outputs if name in known) or tuple(known[-1:])


def _varying(nodes: Sequence[GraphNode]) -> set[fx.Node]:
    """The values that the network's inputs can change, without sizes."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.node.op == "placeholder" or (not _is_size(node.node) and found.intersection(node.node.all_input_nodes)):
            found.add(node.node)
    return found


def _is_size(node: fx.Node) -> bool:
    """Whether a value is a number that follows from the shapes of the inputs."""
    return isinstance(value_of(node), int | float | torch.SymInt | torch.SymFloat)
