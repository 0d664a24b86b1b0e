"""What filters see of a captured network: one `Operation` for each of its values."""

from __future__ import annotations

from torch import fx

from detent.graph import Graph, GraphNode
from detent.graph.placement import Placement
from detent.records.filters import Operation

__all__ = ["operations_of"]


def operations_of(graph: Graph, placement: Placement) -> list[Operation]:
    """The operations of a graph in execution order; positions count those whose kernel `placement` quantizes."""
    users = {user for point in placement.weights.values() for user in point.users}
    layers = [node.name for node in graph.nodes() if node.name in users]
    places = {name: place for place, name in enumerate(layers)}
    return [_operation(node, places) for node in graph.nodes()]


def _operation(node: GraphNode, places: dict[str, int]) -> Operation:
    words = () if node.op is None else tuple(dict.fromkeys((node.op.kind, node.op.name)))
    return Operation(
        name=node.name,
        words=words,
        layer=node.layer,
        modules=_modules(node.node),
        position=places.get(node.name),
        positions=len(places),
    )


def _modules(node: fx.Node) -> tuple[str, ...]:
    """Full class names of the modules around a node, from the stack that torch recorded; outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    kinds = [kind for _, kind in stack.values()]
    return tuple(kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
