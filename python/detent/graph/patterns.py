"""Fusing patterns: chains of operators that a target computes as one, so that no quantizer belongs in between."""

from __future__ import annotations

from collections.abc import Sequence

from detent.graph.graph import Graph, GraphNode
from detent.graph.shifts import SHIFT

__all__ = ["fused_groups"]


def fused_groups(graph: Graph, patterns: Sequence[Sequence[str]]) -> list[list[GraphNode]]:
    """Chains of values that match a pattern, the longest pattern first wherever several match.

    Every value of a chain except the last has the next one as its only consumer and is not an output of the network.
    No value is in two chains. Chains come in order of execution. A sum marked as a shift belongs to the operator before
    it, whatever the patterns say, and is passed over when a pattern goes on behind it.

    Args:
        graph: the network.
        patterns: each a list of kinds or names of op roles, e.g. `["conv", "relu"]`, at least two long.
    """
    ordered = sorted((tuple(p) for p in patterns if len(p) > 1), key=len, reverse=True)
    chains = _Chains(graph)
    for start in graph.nodes():
        matches = (chains.match(start, pattern) for pattern in ordered)
        chains.take(next((chain for chain in matches if chain), chains.with_shifts(start)))
    return chains.groups


class _Chains:
    def __init__(self, graph: Graph) -> None:
        self.by_node = {item.node: item for item in graph.nodes()}
        self.outputs = set(graph.outputs())
        self.taken: set[str] = set()
        self.groups: list[list[GraphNode]] = []

    def take(self, chain: list[GraphNode]) -> None:
        """Keep a chain of two or more values as a group."""
        if len(chain) > 1:
            self.groups.append(chain)
            self.taken.update(item.name for item in chain)

    def match(self, start: GraphNode, pattern: Sequence[str]) -> list[GraphNode]:
        """The chain of a pattern from `start` on, with its shifts; empty if there is none."""
        chain: list[GraphNode] = []
        item: GraphNode | None = start
        for position, word in enumerate(pattern):
            if item is None or item.op is None or not item.op.answers_to(word) or item.name in self.taken:
                return []
            chain += self.with_shifts(item)
            if position + 1 < len(pattern):
                item = self._only_reader(chain[-1])
        return chain

    def with_shifts(self, item: GraphNode) -> list[GraphNode]:
        """A value and the shifts that follow it; nothing if it is taken."""
        if item.name in self.taken:
            return []
        chain = [item]
        following = self._only_reader(item)
        while following is not None and SHIFT in following.node.meta:
            chain.append(following)
            following = self._only_reader(following)
        return chain

    def _only_reader(self, item: GraphNode) -> GraphNode | None:
        users = list(item.node.users)
        return self.by_node.get(users[0]) if len(users) == 1 and item.node not in self.outputs else None
