"""What lives in memory while a network runs, and from when to when.

A *buffer* is the memory of a value and of all its views; a *step* is an operation of the target: one operator, or a
chain that the target computes as one, inside which nothing reaches memory. Sizes are those of one sample, in bits,
which whole widths keep exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from torch import fx

from detent.graph.graph import Graph, GraphNode
from detent.graph.placement import Placement
from detent.graph.shapes import is_tensor
from detent.mixed_precision.slots import Slots, element_bits, layouts_known, per_sample
from detent.mixed_precision.views import viewed

__all__ = ["Buffer", "MemoryNetwork", "Step", "memory_network"]

_IN_PLACE: Final = frozenset({"activation", "elementwise", "add", "sub", "mul", "div", "maximum", "minimum"})
"""Kinds of operators that compute each element from the elements in its place."""
_IN_PLACE_NAMES: Final = frozenset({"batch_norm", "masked_fill", "where"})
_NOT_IN_PLACE: Final = frozenset({"glu"})


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Memory of one value and its views.

    Args:
        name: the value's name.
        elements: of one sample; all of them where the value does not depend on the batch.
        slot: owner of the value's grid; None if it is not quantized.
        float_bits: bits of an element where there is no grid, or the grid's owner is kept in float.
    """

    name: str
    elements: int
    slot: str | None = None
    float_bits: int = 32

    def bits(self, widths: Mapping[str, int]) -> int:
        """Size in bits, with the code width of each slot; 32 stands for float."""
        return self.elements * (self.float_bits if self.slot is None else widths[self.slot])


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation.

    Args:
        name: of the value it ends in.
        reads: positions of the buffers it reads, each once.
        writes: positions of the buffers it makes.
        overwrites: the buffer among `reads` whose memory its result may take, once nothing else reads it; None if it
            needs memory of its own.
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    overwrites: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryNetwork:
    """A network as operations on buffers.

    Args:
        buffers: all memory there is.
        steps: the operations in the order of the graph.
        inputs: positions of the buffers that are filled before the first step.
        outputs: positions of the buffers that are kept to the end.
        notes: non-fatal facts for the user.

    Raises:
        ValueError: a step reads what no earlier one makes, or a buffer is made twice or never.
    """

    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        made = set(self.inputs)
        for step in self.steps:
            if not made.issuperset(step.reads) or len(set(step.reads)) != len(step.reads):
                raise ValueError(f"step {step.name!r} reads a buffer twice, or before it is made")
            if step.overwrites is not None and (step.overwrites not in step.reads or len(step.writes) != 1):
                raise ValueError(f"step {step.name!r} overwrites what it does not read, or with more than one value")
            if made.intersection(step.writes) or len(set(step.writes)) != len(step.writes):
                raise ValueError(f"step {step.name!r} makes a buffer that is there")
            made.update(step.writes)
        if made != set(range(len(self.buffers))) or not self.outputs <= made:
            raise ValueError("a buffer is never made, or an output is not there")

    @cached_property
    def readers(self) -> tuple[int, ...]:
        """For each buffer the steps that read it, as a bit mask over positions of steps."""
        masks = [0] * len(self.buffers)
        for position, step in enumerate(self.steps):
            for buffer in step.reads:
                masks[buffer] |= 1 << position
        return tuple(masks)

    @cached_property
    def before(self) -> tuple[int, ...]:
        """For each step those whose results it reads, as a bit mask over positions of steps."""
        maker = {buffer: position for position, step in enumerate(self.steps) for buffer in step.writes}
        masks = []
        for step in self.steps:
            masks.append(sum(1 << m for m in {maker[buffer] for buffer in step.reads if buffer in maker}))
        return tuple(masks)


def memory_network(graph: Graph, placement: Placement, slots: Slots, *, in_place: bool = True) -> MemoryNetwork:
    """The buffers and steps of a captured network on a target.

    Args:
        graph: the captured network.
        placement: where its grids go; it says which values are inside a fused operation.
        slots: which grid each value lives on.
        in_place: operators that work element by element may write over an operand that nothing reads later.
    """
    return _Builder(graph, placement, slots, in_place).build()


class _Builder:
    def __init__(self, graph: Graph, placement: Placement, slots: Slots, in_place: bool) -> None:
        self.graph, self.slots, self.in_place = graph, slots, in_place
        self.found = {node.node: node for node in graph.nodes()}
        self.fused = placement.fused
        self.known = layouts_known(graph)
        self.buffers: list[Buffer] = []
        self.home: dict[fx.Node, int] = {}
        self.notes: list[str] = []

    def build(self) -> MemoryNetwork:
        members: dict[str, list[GraphNode]] = {}
        steps: list[tuple[Step, list[int]]] = []
        inputs = []
        for node in self.graph.nodes():
            if node.kind == "input":
                inputs.append(self._make(node))
            elif node.name in self.fused:
                members.setdefault(self.fused[node.name], []).append(node)
            elif not self._is_view(node):
                steps += self._step(node, [*members.get(node.name, []), node])
        return MemoryNetwork(
            buffers=tuple(self.buffers),
            steps=_with_overwriting(steps),
            inputs=frozenset(inputs),
            outputs=frozenset(self.home[node] for node in self.graph.outputs() if node in self.home),
            notes=tuple(self.notes),
        )

    def _step(self, node: GraphNode, chain: list[GraphNode]) -> list[tuple[Step, list[int]]]:
        """The step of a chain of operators, with the buffers its result fits in; none for a tuple of views."""
        inside = {member.node for member in chain}
        operands = [source for member in chain for source in member.node.all_input_nodes if source not in inside]
        # Stored tensors, and what is no tensor, are in no buffer.
        read = tuple(dict.fromkeys(self.home[source] for source in operands if source in self.home))
        writes: tuple[int, ...]
        if is_tensor(node.node):
            writes = (self._make(node),)
        else:
            # A tuple of tensors: those that nothing takes out of it are not computed.
            items = [self.found[user] for user in node.node.users if user in self.found]
            writes = tuple(self._make(item) for item in items if viewed(item.node) is None)
            if not writes:
                return []
        step = Step(name=node.name, reads=read, writes=writes)
        return [(step, self._fitting(chain, operands, writes))]

    def _fitting(self, chain: list[GraphNode], operands: Iterable[fx.Node], writes: tuple[int, ...]) -> list[int]:
        """The buffers of operands whose elements are in the places of the result's."""
        if not self.in_place or len(writes) != 1 or not all(_by_element(member) for member in chain):
            return []
        size = self.buffers[writes[0]].elements
        read: dict[int, set[fx.Node]] = {}
        for operand in operands:
            if operand in self.home:
                read.setdefault(self.home[operand], set()).add(operand)
        data = {operand for member in chain for operand in member.data}
        # Not through a view of a part, or one repeated along an axis; nor through two views, as one would be read where
        # the result has been written already.
        return [
            home
            for home, views in read.items()
            if len(views) == 1 and views <= data and self.buffers[home].elements == size
            if self._elements(self.found[next(iter(views))]) == size
        ]

    def _elements(self, node: GraphNode) -> int:
        return per_sample(node, math.prod(node.shape or ()), self.known)

    def _make(self, node: GraphNode) -> int:
        try:
            elements = self._elements(node)
        except ValueError:
            self.notes.append(f"{node.name}: its size depends on the data and is not counted")
            elements = 0
        slot = self.slots.of(node.node)
        self.buffers.append(Buffer(name=node.name, elements=elements, slot=slot, float_bits=element_bits(node)))
        self.home[node.node] = len(self.buffers) - 1
        return len(self.buffers) - 1

    def _is_view(self, node: GraphNode) -> bool:
        """Whether a value has no memory of its own, or was made with its tuple."""
        if node.node in self.home:
            return True
        source = viewed(node.node)
        # A view on another grid, or on none, is another value.
        if source is None or self.slots.of(node.node) != self.slots.of(source):
            return False
        if source in self.home:
            self.home[node.node] = self.home[source]
        return True


def _by_element(node: GraphNode) -> bool:
    if node.op is None or node.op.name in _NOT_IN_PLACE:
        return False
    return node.op.kind in _IN_PLACE or node.op.name in _IN_PLACE_NAMES


def _with_overwriting(drafts: list[tuple[Step, list[int]]]) -> tuple[Step, ...]:
    """Each step with the operand it overwrites: of those that fit, the one that fewest steps read."""
    readers = Counter(buffer for step, _ in drafts for buffer in step.reads)
    steps = []
    for step, fitting in drafts:
        best = min(fitting, key=readers.__getitem__, default=None)
        steps.append(replace(step, overwrites=best))
    return tuple(steps)
