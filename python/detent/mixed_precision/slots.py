"""Activation slots: which values share one grid, and what a value counts where it has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.placement import ActivationPoint, Placement
from detent.graph.shapes import is_float

__all__ = [
    "FLOAT_BITS",
    "Slots",
    "activation_owners",
    "activation_slots",
    "element_bits",
    "layouts_known",
    "per_sample",
]

FLOAT_BITS: Final = 32
"""What an element of a float tensor counts, whatever its type in the captured network."""


@dataclass(frozen=True)
class Slots:
    """The grid each value lives on.

    Args:
        owners: fx node to the name of the value that owns its grid; values without a grid are absent.
        names: names of the owners, in execution order, stored tensors first.
    """

    owners: Mapping[fx.Node, str]
    names: tuple[str, ...]

    def of(self, node: fx.Node) -> str | None:
        """The owner of a value's grid; None if it has none."""
        return self.owners.get(node)


def activation_slots(graph: Graph, placement: Placement) -> Slots:
    """The grid each value of a graph lives on: its own, that of what it moves, or one that it shares."""
    points = placement.activations
    owners: dict[fx.Node, str] = {}
    found = {node.node: node for node in graph.nodes()}
    for node in graph.module.graph.nodes:
        stored = node.op == "get_attr"
        name = str(node.target) if stored else graph.name_of(node)
        if (stored or node in found) and name in points and points[name].constant == stored:
            owners[node] = _owner(points, name)
        elif node in found and found[node].preserving and found[node].data and is_float(node):
            # What only moves values is on the grid of what it reads; so are tuples of such.
            source = owners.get(found[node].data[0])
            if source is not None:
                owners[node] = source
    return Slots(MappingProxyType(owners), tuple(dict.fromkeys(_owner(points, name) for name in points)))


def activation_owners(graph: Graph, placement: Placement) -> dict[str, str | None]:
    """Name of every value to that of the value that owns its grid, None where it has none; execution order."""
    slots = activation_slots(graph, placement)
    return {node.name: slots.of(node.node) for node in graph.nodes()}


def element_bits(node: GraphNode) -> int:
    """Bits of an element that is not quantized: 32 of a float, else those of its type."""
    dtype = node.dtype
    return FLOAT_BITS if dtype is None or dtype.is_floating_point else 8 * dtype.itemsize


def layouts_known(graph: Graph) -> bool:
    """Whether it is known which values depend on the batch; not so where the trial runs of capture failed."""
    return any(node.batch is not None for node in graph.nodes())


def per_sample(node: GraphNode, count: int, known: bool) -> int:
    """What one sample has of a number that a value's whole batch has, rounded up; all if it depends on no sample.

    Args:
        node: the value.
        count: elements or multiplications, for all samples of the captured example.
        known: `layouts_known`; if not, all values are taken to depend on the batch.
    """
    alone = known and node.batch is None
    return count if alone else -(-count // max(node.samples, 1))


def _owner(points: Mapping[str, ActivationPoint], name: str) -> str:
    while (shared := points[name].same_as) is not None:
        name = shared
    return name
