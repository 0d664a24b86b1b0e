"""Runs of a network, step by step: what a step needs in memory where it is run, and what it leaves.

Steps that a best order runs in a row anyway are joined to groups: a step that leaves more alive than it frees, all of
whose results one other step reads and nothing else, waits for that one. Until then there is less alive. When it is run,
right before its reader, it needs what is alive without it and its own; if that is no more than what the reader needs
with it done, nothing is lost. Its operands must be read by nothing else, or what it frees would depend on when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from detent.mixed_precision.memory import MemoryNetwork

__all__ = ["Runs"]


class Runs:
    """Groups of steps with sizes in bits.

    Args:
        network: buffers and steps.
        widths: code width of each grid's owner; 32 stands for float.

    Attributes:
        groups: positions of the steps of each group, in the order they run.
        start: bits alive before the first step, `given` with inputs that nothing reads.
        first: groups that can run at the beginning.
        meetings: groups before or after which every other one comes, as a bit mask.
    """

    def __init__(self, network: MemoryNetwork, widths: Mapping[str, int]) -> None:
        self.network = network
        self.sizes = [buffer.bits(widths) for buffer in network.buffers]
        self.kept = network.outputs
        self.written = [sum(self.sizes[buffer] for buffer in step.writes) for step in network.steps]
        self.given = sum(self.sizes[buffer] for buffer in network.inputs)
        self.start = sum(self.sizes[b] for b in network.inputs if network.readers[b] or b in self.kept)
        self.groups = self._joined()
        self._index()

    def _index(self) -> None:
        """Who reads what and who waits for whom, by groups."""
        network, sizes = self.network, self.sizes
        of = {step: position for position, group in enumerate(self.groups) for step in group}
        readers = [sum(1 << group for group in {of[step] for step in _bits(mask)}) for mask in network.readers]
        self.before, self._moves = [], []
        self.after: list[list[int]] = [[] for _ in self.groups]
        for position, group in enumerate(self.groups):
            earlier = {of[step] for member in group for step in _bits(network.before[member])} - {position}
            for other in earlier:
                self.after[other].append(position)
            self.before.append(sum(1 << other for other in earlier))
            moves = []
            for place, member in enumerate(group):
                step = network.steps[member]
                # What later members of the group read stays.
                later = {buffer for other in group[place + 1 :] for buffer in network.steps[other].reads}
                freed = [(sizes[b], readers[b]) for b in step.reads if b not in self.kept and b not in later]
                unread = sum(sizes[b] for b in step.writes if not network.readers[b] and b not in self.kept)
                target = step.overwrites
                free = target is not None and target not in self.kept and target not in later
                spared = (sizes[target], readers[target]) if free and target is not None else None
                moves.append((self.written[member], freed, unread, spared))
            self._moves.append(moves)
        self.first = tuple(position for position, mask in enumerate(self.before) if not mask)
        self.meetings = self._meetings()

    def move(self, done: int, live: int, group: int) -> tuple[int, int]:
        """Bits needed while a group runs, and bits alive after it.

        Args:
            done: the finished groups, a bit mask.
            live: bits alive before.
            group: its position.
        """
        left = ~(done | 1 << group)
        most = 0
        for written, freed, unread, spared in self._moves[group]:
            need = live + written
            if spared is not None and not spared[1] & left:
                need = max(live, need - spared[0])
            most = max(most, need)
            live += written - unread - sum([size for size, readers in freed if not readers & left])
        return most, live

    def ready(self, done: int, waiting: tuple[int, ...], group: int) -> tuple[int, ...]:
        """The groups that can run after one of `waiting`, which could run before; `done` includes it."""
        new = [other for other in self.after[group] if not self.before[other] & ~done]
        return (*(other for other in waiting if other != group), *new)

    def steps_of(self, groups: Iterable[int]) -> tuple[int, ...]:
        """The steps of groups, in order."""
        return tuple(step for group in groups for step in self.groups[group])

    def floor(self) -> int:
        """Bits that any order needs: the inputs, the outputs, and what each step reads and writes."""
        most = max(self.given, sum(self.sizes[buffer] for buffer in self.kept))
        for position, step in enumerate(self.network.steps):
            read = sum(self.sizes[buffer] for buffer in step.reads)
            saved = 0 if step.overwrites is None else self.sizes[step.overwrites]
            most = max(most, read, read + self.written[position] - saved)
        return most

    def peak(self, order: Sequence[int]) -> int:
        """The most bits alive at once when single steps run in an order."""
        live, most, done = self.start, self.given, 0
        for position in order:
            done |= 1 << position
            step = self.network.steps[position]
            need = live + self.written[position]
            gone = {
                b for b in (*step.reads, *step.writes) if b not in self.kept and not self.network.readers[b] & ~done
            }
            if step.overwrites in gone and step.overwrites is not None:
                need = max(live, need - self.sizes[step.overwrites])
            most = max(most, need)
            live += self.written[position] - sum(self.sizes[buffer] for buffer in gone)
        return most

    def heuristics(self) -> Iterator[tuple[int, ...]]:
        """Orders made group by group: by what one leaves alive, and by what it needs while it runs."""
        for by_need in (False, True):
            done, live, order, waiting = 0, self.start, [], self.first
            while waiting:
                found = [(*self.move(done, live, group), group) for group in waiting]
                _, live, best = min(found) if by_need else min(found, key=lambda entry: entry[1::-1])
                done |= 1 << best
                waiting = self.ready(done, waiting, best)
                order.append(best)
            yield self.steps_of(order)

    def free_chain(self, done: int, live: int, waiting: tuple[int, ...], limit: int) -> tuple[int, ...]:
        """Groups that can be run at once without loss: within `limit` bits, with no more alive at their end."""
        for group in waiting:
            chain, now, alive = [], done, live
            following: int | None = group
            while following is not None:
                need, alive = self.move(now, alive, following)
                if need > limit:
                    break
                now |= 1 << following
                chain.append(following)
                if alive <= live:
                    return tuple(chain)
                following = next((other for other in self.after[following] if not self.before[other] & ~now), None)
        return ()

    def _meetings(self) -> int:
        # In the order of their last steps, groups come after all they depend on.
        order = sorted(range(len(self.groups)), key=lambda group: self.groups[group][-1])
        earlier = [0] * len(order)
        later = [0] * len(order)
        for group in order:
            for other in _bits(self.before[group]):
                earlier[group] |= earlier[other] | 1 << other
        for group in reversed(order):
            for other in self.after[group]:
                later[group] |= later[other] | 1 << other
        everything = (1 << len(order)) - 1
        return sum(1 << group for group in order if earlier[group] | later[group] | 1 << group == everything)

    def _joined(self) -> tuple[tuple[int, ...], ...]:
        """The groups, in the order of their last steps."""
        groups: dict[int, list[int]] = {}
        for position in range(len(self.network.steps)):
            group = groups.setdefault(position, [position])
            reader = self._waits_for(group)
            if reader is not None and self._needs_no_more(group, groups.setdefault(reader, [reader])):
                groups[reader] = [*group, *groups[reader]]
                del groups[position]
        return tuple(tuple(groups[last]) for last in sorted(groups))

    def _waits_for(self, group: list[int]) -> int | None:
        """The one step that reads what a group leaves, if the group frees the same whenever it runs."""
        steps, readers = self.network.steps, self.network.readers
        members = sum(1 << member for member in group)
        for member in group:
            if any(readers[buffer] & ~members and buffer not in self.kept for buffer in steps[member].reads):
                return None
        reading = 0
        for buffer in steps[group[-1]].writes:
            if buffer in self.kept or not readers[buffer]:
                return None
            reading |= readers[buffer]
        return reading.bit_length() - 1 if reading.bit_count() == 1 else None

    def _needs_no_more(self, group: list[int], reader: list[int]) -> bool:
        """Whether a group leaves more than it frees, and needs no more right before its reader than this itself."""
        need, change = self._profile(group)
        return change >= 0 and need - change <= self._profile(reader, least=True)[0]

    def _profile(self, group: list[int], *, least: bool = False) -> tuple[int, int]:
        """Bits that a group needs beyond those alive before it, and leaves beyond them.

        Args:
            group: steps; what they read, all but the last one of a reader's, nothing else reads.
            least: count the need of each step as small as it can be anywhere.
        """
        most, change = 0, 0
        for member in group:
            step, target = self.network.steps[member], self.network.steps[member].overwrites
            need = change + self.written[member]
            if target is not None and target not in self.kept:
                need = max(change, need - self.sizes[target])
            most = max(most, need)
            if least and member == group[-1]:
                break
            change += self.written[member] - sum(self.sizes[b] for b in step.reads if b not in self.kept)
        return most, change


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
