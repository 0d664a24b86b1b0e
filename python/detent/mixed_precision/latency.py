"""Measured times: a user's table of what layers take at given code widths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from detent._registry import unknown_name
from detent.errors import ConfigError
from detent.graph.graph import Graph, GraphNode
from detent.graph.placement import Placement
from detent.graph.roles import OPS
from detent.mixed_precision.slots import FLOAT_BITS, Slots

__all__ = ["LatencyTable", "LayerLatency", "WidthPair", "latencies"]

WidthPair = tuple[int | None, int]
"""Width of the kernel, None for an operation without one, and of the first input; 32 stands for float."""
LatencyTable = Mapping[tuple[str, int | None, int], float]
"""(layer or kind of operation, width of the kernel or None, width of the input) to seconds, or cycles."""


@dataclass(frozen=True, kw_only=True)
class LayerLatency:
    """What one operation takes.

    Args:
        layer: its name.
        kernel: the layer its kernel goes by in a plan; None for one in float, or none.
        input: owner of the grid of its first input; None for one in float.
        has_kernel: whether it has a kernel, be it in float.
        times: widths to seconds or cycles, in the unit of the table.
    """

    layer: str
    kernel: str | None
    input: str | None
    has_kernel: bool
    times: Mapping[WidthPair, float]

    def time(self, kernel_bits: int, input_bits: int) -> float:
        """The time at a width of the kernel, which an operation without one disregards, and of the input.

        Raises:
            ConfigError: the table has no such entry.
        """
        widths = (kernel_bits if self.has_kernel else None, input_bits)
        if widths not in self.times:
            known = ", ".join(str(entry) for entry in self.times)
            raise ConfigError(
                f"the latency table has no entry for {widths} bits of kernel and input",
                where=self.layer,
                remedy=f"add one; it has {known}",
            )
        return self.times[widths]


def latencies(
    graph: Graph, placement: Placement, slots: Slots, table: LatencyTable
) -> tuple[tuple[LayerLatency, ...], list[str]]:
    """The operations a table has entries for, and a note on layers it leaves out, which count nothing.

    A layer's own entries win over those of its operator (`conv2d`), and these over those of its kind (`conv`). A chain
    computed as one operation takes the time of the operator it begins with, unless an entry names a later one.

    Raises:
        ConfigError: an entry is no time, or is for a layer or kind of operation that does not exist.
    """
    times = _checked(graph, table)
    kernels = {user: layer for layer, point in placement.weights.items() for user in point.users}
    chains: dict[str, list[GraphNode]] = {}
    for node in graph.nodes():
        chains.setdefault(placement.fused.get(node.name, node.name), []).append(node)
    found, without = [], []
    for chain in chains.values():
        first = chain[0]
        words = [node.name for node in chain]
        words += [first.op.name, first.op.kind] if first.op is not None else []
        entry = next((times[word] for word in words if word in times), None)
        if entry is not None:
            found.append(
                LayerLatency(
                    layer=first.name,
                    kernel=kernels.get(first.name),
                    input=slots.of(first.data[0]) if first.data else None,
                    has_kernel=first.weight is not None,
                    times=entry,
                )
            )
        elif first.macs:
            without.append(first.name)
    notes = [f"the latency table has nothing for {', '.join(without)}: counted as 0"] if without else []
    return tuple(found), notes


def _checked(graph: Graph, table: LatencyTable) -> dict[str, dict[WidthPair, float]]:
    """Times by word and widths."""
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"a latency table maps (layer or kind of operation, kernel bits, input bits) to a time, got a "
            f"{type(table).__name__}"
        )
    kinds = {word for name in OPS for word in (OPS[name].name, OPS[name].kind)}
    times: dict[str, dict[WidthPair, float]] = {}
    for key, time in table.items():
        if not isinstance(key, tuple) or len(key) != 3 or not isinstance(key[0], str):
            raise ConfigError(f"a key of a latency table is (name, kernel bits or None, input bits), got {key!r}")
        word, kernel_bits, input_bits = key
        if word not in graph and word not in kinds:
            raise unknown_name("layer or kind of operation", word, {*kinds, *(node.name for node in graph.nodes())})
        if not (kernel_bits is None or _is_width(kernel_bits)) or not _is_width(input_bits):
            raise ConfigError(f"widths are 1 to 16 bits, or {FLOAT_BITS} for float, got {key[1:]!r}", where=word)
        number = isinstance(time, int | float) and not isinstance(time, bool)
        if not number or not math.isfinite(time) or time < 0:
            raise ConfigError(f"a time is a finite number, not below 0, got {time!r}", where=f"{key!r}")
        times.setdefault(word, {})[kernel_bits, input_bits] = float(time)
    return times


def _is_width(bits: object) -> bool:
    return isinstance(bits, int) and not isinstance(bits, bool) and (1 <= bits <= 16 or bits == FLOAT_BITS)
