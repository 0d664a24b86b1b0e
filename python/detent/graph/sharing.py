"""Concatenations whose inputs take their grid, so that nothing is requantized where parts are put side by side.

Where a target asks for it, placement does so by itself. Here it is done on request, for values that nothing but the
concatenation reads: they are rounded once to its grid instead of to their own first.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.placement import ActivationPoint, Placement

__all__ = ["share_concatenation_grids"]

_SHARES: Final = "it shares its grid"


def share_concatenation_grids(graph: Graph, placement: Placement, own: Collection[str] = ()) -> Placement:
    """The placement in which inputs of a concatenation are on its grid; the notes name those that are not, and why.

    The grid is decided by the concatenation's own values, which are those of all its inputs.

    Args:
        graph: the captured network.
        placement: where its grids go on a target.
        own: values that keep their own grid whatever reads them.
    """
    points = dict(placement.activations)
    nodes = {node.node: node for node in graph.nodes()}
    outputs = set(graph.outputs())
    notes = []
    # The last first: what a concatenation takes over, its inputs take over from it.
    for node in reversed(graph.nodes()):
        if node.kind != "cat" or node.name not in points:
            continue
        owner = points[node.name].same_as or node.name
        for value in dict.fromkeys(_source(nodes, operand) for operand in node.data):
            name = nodes[value].name if value in nodes else str(value.target)
            point = points.get(name)
            if point is None or (point.same_as is not None and points[point.same_as] is points[owner]):
                continue
            reason = "the plan has decided it" if name in own else _obstacle(point, points, owner)
            reason = reason or _other_reader(nodes, outputs, value, node)
            if reason is None:
                points[name] = replace(
                    point, same_as=owner, members=(), bounds=None, axis=None, one_step=point.one_step or _SHARES
                )
                points[owner] = replace(points[owner], axis=None, one_step=points[owner].one_step or _SHARES)
            else:
                notes.append(f"{name} keeps its own grid before {node.name}: {reason}")
    return replace(placement, activations=points, notes=(*placement.notes, *reversed(notes)))


def _source(nodes: dict[fx.Node, GraphNode], value: fx.Node) -> fx.Node:
    """The value whose grid `value` lives on: back through operations that only move values."""
    while value in nodes and nodes[value].preserving and nodes[value].data:
        value = nodes[value].data[0]
    return value


def _obstacle(point: ActivationPoint, points: dict[str, ActivationPoint], owner: str) -> str | None:
    """Why the grid of a value cannot be that of `owner`, as far as the two points tell."""
    if point.constant:
        return "it is stored, not computed"
    if point.same_as is not None or any(other.same_as == point.value for other in points.values()):
        return "it shares a grid with other values"
    if point.holds is not None:
        return "it was shifted for a grid of its own"
    if point.declared is not None:
        return "its range is declared"
    if point.op_rule.fixed_outputs or points[owner].op_rule.fixed_outputs:
        return "the target prescribes a grid"
    if point.rule != points[owner].rule:
        return "the target has other grids for the two"
    return None


def _other_reader(
    nodes: dict[fx.Node, GraphNode], outputs: set[fx.Node], value: fx.Node, reader: GraphNode
) -> str | None:
    """What reads a value besides one operation, directly or through operations that only move values."""
    if value in outputs:
        return "it is an output of the network"
    for user in value.users:
        found = nodes.get(user)
        if found is not None and found.preserving:
            reason = _other_reader(nodes, outputs, user, reader)
            if reason is not None:
                return reason
        elif user is not reader.node:
            return f"{user.name if found is None else found.name} reads it too"
    return None
