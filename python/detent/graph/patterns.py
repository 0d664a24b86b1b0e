"""Fusing patterns: chains of operators that a target computes as one, so that no quantizer belongs in between."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from detent.graph.graph import Graph, GraphNode

__all__ = ["fused_groups"]


def fused_groups(graph: Graph, patterns: Sequence[Sequence[str]]) -> list[list[GraphNode]]:
    """Chains of values that match a pattern, the longest pattern first wherever several match.

    Every value of a chain except the last has the next one as its only consumer and is not an output of the network.
    No value is in two chains. Chains come in order of execution.

    Args:
        graph: the network.
        patterns: each a list of kinds or names of op roles, e.g. `["conv", "relu"]`, at least two long.
    """
    ordered = sorted((tuple(p) for p in patterns if len(p) > 1), key=len, reverse=True)
    by_node = {item.node: item for item in graph.nodes()}
    outputs = set(graph.outputs())
    taken: set[str] = set()
    groups = []
    for start in graph.nodes():
        if start.name in taken:
            continue
        for pattern in ordered:
            chain = _match(start, pattern, by_node, outputs, taken)
            if chain:
                groups.append(chain)
                taken.update(item.name for item in chain)
                break
    return groups


def _match(
    start: GraphNode, pattern: Sequence[str], by_node: dict[fx.Node, GraphNode], outputs: set[fx.Node], taken: set[str]
) -> list[GraphNode]:
    chain: list[GraphNode] = []
    item: GraphNode | None = start
    for position, word in enumerate(pattern):
        if item is None or item.op is None or not item.op.answers_to(word) or item.name in taken:
            return []
        chain.append(item)
        if position + 1 < len(pattern):
            users = list(item.node.users)
            alone = len(users) == 1 and item.node not in outputs
            item = by_node.get(users[0]) if alone else None
    return chain
