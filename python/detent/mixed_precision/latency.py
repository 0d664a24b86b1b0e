"""Measured times: a user's table of what layers take at given code widths, given as a mapping or as a JSON file.

The file is a list with an object for each time, `{"layer": "conv2d", "kernel_bits": 8, "input_bits": 8, "time": 2e-4}`;
`kernel_bits` is left out or null for an operation without a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detent._registry import unknown_name
from detent._validation import FrozenModel, parse_json, validate
from detent.errors import ConfigError
from detent.graph.graph import Graph, GraphNode
from detent.graph.placement import Placement
from detent.graph.roles import OPS
from detent.mixed_precision.slots import FLOAT_BITS, Slots
from detent.records.files import read_text

__all__ = ["LatencyTable", "LayerLatency", "WidthPair", "latencies", "latency_table"]

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


class _Entry(FrozenModel):
    """A line of a file; the values are checked as those of a mapping are."""

    layer: str
    kernel_bits: int | None = None
    input_bits: int
    time: float


def latency_table(given: LatencyTable | str | Path) -> LatencyTable:
    """The table that is given, or that of the JSON file whose path is.

    Raises:
        ConfigError: the file holds something else than a list of times, or two for the same layer and widths.
        FormatError: the file cannot be read, or is no JSON.
    """
    if not isinstance(given, str | Path):
        return given
    where = str(given)
    remedy = 'write a list of {"layer": "conv2d", "kernel_bits": 8, "input_bits": 8, "time": 2e-4}'
    data = parse_json(read_text(Path(given)), where, remedy=remedy)
    if not isinstance(data, list):
        raise ConfigError(f"a file of times is a list, got a {type(data).__name__}", where=where, remedy=remedy)
    table: dict[tuple[str, int | None, int], float] = {}
    for number, line in enumerate(data, 1):
        place = f"{where}: time {number}"
        entry = validate(_Entry, line, where=place)
        key = (entry.layer, entry.kernel_bits, entry.input_bits)
        if key in table:
            raise ConfigError(f"there is a time for {key} already", where=place, remedy="leave one of them out")
        table[key] = entry.time
    return table


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
