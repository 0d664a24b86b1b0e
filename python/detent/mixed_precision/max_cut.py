"""Max cut: the most activation memory alive at once when operations run in a given order.

A buffer lives from the step that makes it to the last step that reads it; inputs from the beginning, outputs to the
end. While a step runs, what it reads and what it writes is there together, unless it writes in place: then there is
first the one and then the other. Each set of buffers alive at once is a *cut*. For code widths chosen later the memory
is the maximum over the cuts, and of these only such are kept as are the maximum for some widths or other: each is one
row of an integer program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from detent.errors import ConfigError
from detent.mixed_precision.memory import MemoryNetwork

__all__ = ["Cut", "alive", "cuts"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Values that are in memory at once, for one sample.

    Args:
        during: name of the step they are there in; empty for the inputs before the first.
        values: their names; views are not listed besides what they show.
        elements: owner of a grid to the elements in the cut that have its width.
        fixed_bits: bits of those without a grid.
    """

    during: str
    values: tuple[str, ...]
    elements: Mapping[str, int]
    fixed_bits: int

    def bytes(self, widths: Mapping[str, int]) -> float:
        """Size in bytes, a multiple of 1/8, by the code width of each grid's owner; 32 stands for float."""
        return (self.fixed_bits + sum(count * widths[slot] for slot, count in self.elements.items())) / 8


def cuts(network: MemoryNetwork, order: Sequence[int] | None = None) -> tuple[Cut, ...]:
    """The cuts that can be the largest for some code widths, in the order they occur.

    Args:
        network: buffers and steps.
        order: positions of the steps in the order they run; None for the order of the graph.

    Raises:
        ConfigError: `order` is not an order of all steps in which each comes after what it reads.
    """
    found: dict[int, str] = {}
    for name, mask in alive(network, order):
        found.setdefault(mask, name)
    # Cheap first: most cuts are part of the one before or after.
    masks = list(found)
    masks = [
        mask
        for position, mask in enumerate(masks)
        if not any(mask & other == mask for other in masks[max(position - 1, 0) : position + 2] if other != mask)
    ]
    return _largest([_cut(network, found[mask], mask) for mask in masks])


def alive(network: MemoryNetwork, order: Sequence[int] | None = None) -> Iterator[tuple[str, int]]:
    """What is in memory while each step runs: name of the step and bit mask over buffers; two in a row in place.

    Raises:
        ConfigError: as `cuts`.
    """
    steps = _checked(network, order)
    left = list(network.readers)
    kept = sum(1 << buffer for buffer in network.outputs)
    live = sum(1 << buffer for buffer in network.inputs)
    yield "", live
    live &= kept | sum(1 << buffer for buffer in network.inputs if left[buffer])
    for position in steps:
        step = network.steps[position]
        written = sum(1 << buffer for buffer in step.writes)
        for buffer in step.reads:
            left[buffer] &= ~(1 << position)
        target = step.overwrites
        if target is not None and not left[target] and target not in network.outputs:
            yield step.name, live
            live &= ~(1 << target)
        live |= written
        yield step.name, live
        live &= ~sum(1 << b for b in (*step.reads, *step.writes) if not left[b] and b not in network.outputs)


def _checked(network: MemoryNetwork, order: Sequence[int] | None) -> Sequence[int]:
    if order is None:
        return range(len(network.steps))
    done = 0
    for position in order:
        known = isinstance(position, int) and 0 <= position < len(network.steps) and not done >> position & 1
        if not known or network.before[position] & ~done:
            raise ConfigError(
                f"{position!r} is no step that can come at its place in `order`",
                remedy="give each step once, after those whose values it reads",
            )
        done |= 1 << position
    if done != (1 << len(network.steps)) - 1:
        raise ConfigError(f"`order` has {len(order)} of {len(network.steps)} steps")
    return order


def _cut(network: MemoryNetwork, name: str, mask: int) -> Cut:
    buffers = [buffer for position, buffer in enumerate(network.buffers) if mask >> position & 1]
    elements: dict[str, int] = {}
    fixed = 0
    for buffer in buffers:
        if buffer.slot is None:
            fixed += buffer.elements * buffer.float_bits
        elif buffer.elements:
            elements[buffer.slot] = elements.get(buffer.slot, 0) + buffer.elements
    return Cut(
        during=name,
        values=tuple(buffer.name for buffer in buffers),
        elements=MappingProxyType(elements),
        fixed_bits=fixed,
    )


def _largest(found: list[Cut]) -> tuple[Cut, ...]:
    """The cuts that no other one exceeds or equals at all widths; of equal ones the first."""
    holding: dict[str, list[int]] = {}
    for position, cut in enumerate(found):
        for slot in cut.elements:
            holding.setdefault(slot, []).append(position)
    kept = []
    for position, cut in enumerate(found):
        # Whatever exceeds a cut holds all its slots, so it is enough to look where the rarest one is held.
        rivals = min((holding[slot] for slot in cut.elements), key=len, default=range(len(found)))
        if not any(_exceeds(found[rival], cut, rival < position) for rival in rivals if rival != position):
            kept.append(cut)
    return tuple(kept)


def _exceeds(rival: Cut, cut: Cut, earlier: bool) -> bool:
    """Whether a cut is at least as large as another at all widths, and larger at some or the earlier of two equals."""
    if rival.fixed_bits < cut.fixed_bits:
        return False
    if any(rival.elements.get(slot, 0) < count for slot, count in cut.elements.items()):
        return False
    return earlier or rival.fixed_bits > cut.fixed_bits or rival.elements != cut.elements
