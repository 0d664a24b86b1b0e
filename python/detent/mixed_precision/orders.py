"""The order of operations that needs the least activation memory.

The state of a run is the set of steps that are done (a down-set of the graph); what is alive follows from it. The
search goes through states by the most memory needed on the way (the shortest-path algorithm of Dijkstra with the
maximum in place of the sum), so that the first complete run it meets needs the least possible. These rules keep it
small and exact (cf. Liu, 1987, "An application of generalized tree pebbling to sparse matrix factorization", on hills
and valleys):

* A step that leaves more alive than it frees, and whose result one other step alone reads, waits for that step, if this
  one needs so much itself that running the two in a row adds nothing (`detent.mixed_precision.runs`).
* A chain of steps, each reading the one before, that can be run within the memory needed so far and ends with no more
  alive than at its beginning, is run at once. Running it earlier than a best order does costs nothing: what it frees
  later it frees now, and no step needs more for its being done.
* Where everything left depends on a step, all runs meet: of those that have not got there, none is looked at again.
* Runs that would need no less than one already known are left out.

Where states run out, the best order that heuristics find is returned with a proven lower bound: the least memory of the
states still waiting.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from detent.errors import ConfigError
from detent.mixed_precision.memory import MemoryNetwork
from detent.mixed_precision.runs import Runs

__all__ = ["Schedule", "best_order"]

_BEAM: Final = 16
"""Runs that the beam search keeps side by side."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """An order of steps and what it needs, for one sample.

    Args:
        order: positions of the steps of a `MemoryNetwork`.
        peak_bytes: the most activation memory alive at once.
        lower_bound_bytes: no order needs less.
    """

    order: tuple[int, ...]
    peak_bytes: float
    lower_bound_bytes: float

    @property
    def exact(self) -> bool:
        """Whether no order needs less than this one."""
        return self.peak_bytes <= self.lower_bound_bytes

    @property
    def gap(self) -> float:
        """How much more than the lower bound it needs at most, as a share of the bound."""
        return 0.0 if self.exact else self.peak_bytes / self.lower_bound_bytes - 1


def best_order(network: MemoryNetwork, widths: Mapping[str, int] | int = 8, *, states: int = 5_000) -> Schedule:
    """The order of steps with the least activation memory at given code widths; the graph's own if none is better.

    Args:
        network: buffers and steps.
        widths: code width of each grid's owner, or one for all; 32 stands for float.
        states: sets of finished steps to look at before the search gives up being exact.

    Raises:
        ConfigError: a width is missing or no positive number of bits.
    """
    if states < 0:
        raise ConfigError(f"`states` is how many sets of steps to look at, got {states}")
    runs = Runs(network, _widths(network, widths))
    order = tuple(range(len(network.steps)))
    peak, floor = runs.peak(order), runs.floor()
    for found in runs.heuristics() if peak > floor else ():
        if runs.peak(found) < peak:
            peak, order = runs.peak(found), found
    if peak > floor:
        found, floor = _search(runs, peak, floor, states)
        if not found and floor < peak:
            found = _beam(runs)
        if found and runs.peak(found) < peak:
            peak, order = runs.peak(found), found
    return Schedule(order=order, peak_bytes=peak / 8, lower_bound_bytes=min(floor, peak) / 8)


def _widths(network: MemoryNetwork, widths: Mapping[str, int] | int) -> Mapping[str, int]:
    slots = {buffer.slot for buffer in network.buffers if buffer.slot is not None}
    chosen = dict.fromkeys(slots, widths) if isinstance(widths, int) else widths
    for slot in slots:
        if slot not in chosen:
            raise ConfigError("the width of this value is missing", where=slot)
        if isinstance(chosen[slot], bool) or not isinstance(chosen[slot], int) or chosen[slot] < 1:
            raise ConfigError(f"a width is a positive number of bits, got {chosen[slot]!r}", where=slot)
    return chosen


_State = tuple[int, int, tuple[int, ...]]
"""Finished groups as a bit mask, bits alive, groups that can run."""


def _settle(runs: Runs, state: _State, limit: int) -> tuple[_State, tuple[int, ...]]:
    """The state after all that can be run without loss, and those groups."""
    done, live, waiting = state
    path: list[int] = []
    while chain := runs.free_chain(done, live, waiting, limit):
        for group in chain:
            _, live = runs.move(done, live, group)
            done |= 1 << group
            waiting = runs.ready(done, waiting, group)
        path += chain
    return (done, live, waiting), tuple(path)


def _search(runs: Runs, known: int, floor: int, states: int) -> tuple[tuple[int, ...], int]:
    """A best order, or none where no order needs less than `known` bits or states run out; and a lower bound."""
    everything = (1 << len(runs.groups)) - 1
    came: dict[int, tuple[int, tuple[int, ...]]] = {}
    least = {0: floor}
    heap: list[tuple[int, int, int, int, tuple[int, ...]]] = [(floor, 0, 0, runs.start, runs.first)]
    closed: set[int] = set()
    met = 0
    while heap:
        most, _, origin, live, waiting = heapq.heappop(heap)
        if origin in closed:
            continue
        closed.add(origin)
        if len(closed) > states:
            return (), most
        (done, live, waiting), path = _settle(runs, (origin, live, waiting), most)
        if done != origin:
            # Another way may lead here later; it needs no less, as this one came first.
            if done in closed:
                continue
            closed.add(done)
            came[done] = (origin, path)
        if done == everything:
            return _trace(runs, came, done), most
        passed = done & runs.meetings
        if passed & ~met:
            met = passed
            heap = [entry for entry in heap if entry[2] & met == met]
            heapq.heapify(heap)
        for group in waiting:
            need, left = runs.move(done, live, group)
            need, now = max(need, most), done | 1 << group
            if need < known and now not in closed and need < least.get(now, known):
                least[now] = need
                came[now] = (done, (group,))
                heapq.heappush(heap, (need, -now.bit_count(), now, left, runs.ready(now, waiting, group)))
    return (), known


def _trace(runs: Runs, came: Mapping[int, tuple[int, tuple[int, ...]]], state: int) -> tuple[int, ...]:
    parts = []
    while state:
        state, groups = came[state]
        parts.append(groups)
    return runs.steps_of(group for groups in reversed(parts) for group in groups)


def _beam(runs: Runs) -> tuple[int, ...]:
    """A good order: the best few runs are taken on group by group."""
    kept: list[tuple[int, int, int, tuple[int, ...], tuple[int, ...]]] = [(0, runs.start, 0, runs.first, ())]
    for _ in runs.groups:
        reached: dict[int, tuple[int, int, int, tuple[int, ...], tuple[int, ...]]] = {}
        for most, live, done, waiting, order in kept:
            for group in waiting:
                need, left = runs.move(done, live, group)
                need, now = max(need, most), done | 1 << group
                if now not in reached or (need, left) < reached[now][:2]:
                    reached[now] = (need, left, now, runs.ready(now, waiting, group), (*order, group))
        kept = heapq.nsmallest(_BEAM, reached.values())
    return runs.steps_of(kept[0][4])
