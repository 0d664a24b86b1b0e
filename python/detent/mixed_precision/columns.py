"""The columns of the integer program: one per candidate still in play, one per pair of candidates of a product.

A candidate's column is 1 if it is chosen. The column of a pair is 1 if both are; it need not be declared integer, for
with `sum_b y_ab = x_a` and `sum_a y_ab = x_b` it follows from the others (the local polytope of a pairwise model:
tighter than the usual three inequalities, and exact by itself where products form trees).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detent.mixed_precision.problem import Problem, Row

__all__ = ["Columns", "Form", "Kept", "keep_all", "keep_useful", "keep_what_fits"]

Array = npt.NDArray[np.float64]
Kept = list[list[int]]
"""The candidates still in play, by slot."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Form:
    """A linear form of the columns: `constant + coefficients . columns`, coefficients not negative."""

    constant: float
    coefficients: Array

    def room(self, row: Row) -> float:
        """What the coefficients of a row may add up to; if sums are rounded a little more, so rounding rules nothing
        out."""
        limit, exact = row.attainable_limit
        return limit - self.constant + (0.0 if exact else 1e-12 * (abs(limit) + abs(self.constant)))


class Columns:
    """Which column stands for what.

    Args:
        problem: whose slots and products they stand for.
        kept: the candidates in play; a slot with one of them needs no column.
        rows: whose products need columns.
    """

    def __init__(self, problem: Problem, kept: Kept, rows: Sequence[Row]) -> None:
        self.kept = kept
        self.blocks: list[tuple[int, int]] = []  # first column and number of columns, per slot or pair
        self.slots: dict[int, int] = {}  # first column of each slot with a choice
        self.pairs: dict[tuple[int, int], int] = {}
        self.size = 0
        for slot in range(len(problem.slots)):
            if len(kept[slot]) > 1:
                self.slots[slot] = self._block(len(kept[slot]))
        self.candidates = self.size  # columns of candidates come first
        for row in rows:
            for a, b, _ in row.products:
                pair = (min(a, b), max(a, b))
                if a in self.slots and b in self.slots and pair not in self.pairs:
                    self.pairs[pair] = self._block(len(kept[a]) * len(kept[b]))

    def _block(self, size: int) -> int:
        self.blocks.append((self.size, size))
        self.size += size
        return self.size - size

    def span(self, slot: int) -> slice:
        """The columns of a slot that has a choice."""
        return slice(self.slots[slot], self.slots[slot] + len(self.kept[slot]))

    def of_row(self, row: Row) -> Form:
        """The amount of a resource."""
        coefficients, fixed = np.zeros(self.size), [row.constant]
        for slot, amounts in row.linear.items():
            self._add(slot, amounts[self.kept[slot]], coefficients, fixed)
        for i, j, given in row.products:
            a, b, amounts = (i, j, given) if i < j else (j, i, given.T)
            part = amounts[np.ix_(self.kept[a], self.kept[b])]
            if a in self.slots and b in self.slots:
                first = self.pairs[a, b]
                coefficients[first : first + part.size] += part.ravel()
            else:
                self._add(b if b in self.slots else a, part.ravel(), coefficients, fixed)
        return self._from_zero(coefficients, fixed)

    def of_costs(self, costs: Sequence[Array]) -> Form:
        """A sum over slots."""
        coefficients, fixed = np.zeros(self.size), [0.0]
        for slot, values in enumerate(costs):
            self._add(slot, values[self.kept[slot]], coefficients, fixed)
        return self._from_zero(coefficients, fixed)

    def _add(self, slot: int, values: Array, coefficients: Array, fixed: list[float]) -> None:
        if slot in self.slots:
            coefficients[self.span(slot)] += values
        else:
            fixed.append(float(values[0]))

    def _from_zero(self, coefficients: Array, fixed: list[float]) -> Form:
        """One column of each block is 1, so what all of them have in common is a constant."""
        for first, size in self.blocks:
            least = coefficients[first : first + size].min()
            coefficients[first : first + size] -= least
            fixed.append(float(least))
        return Form(constant=math.fsum(fixed), coefficients=coefficients)

    def assignment(self, values: Array) -> tuple[int, ...]:
        """The candidate of each slot, the one whose column is largest."""
        return tuple(
            kept[int(np.argmax(values[self.span(slot)]))] if slot in self.slots else kept[0]
            for slot, kept in enumerate(self.kept)
        )

    def values(self, assignment: Sequence[int]) -> Array:
        """The columns of an assignment of candidates in play."""
        values = np.zeros(self.size)
        place = {slot: self.kept[slot].index(assignment[slot]) for slot in self.slots}
        for slot, first in self.slots.items():
            values[first + place[slot]] = 1.0
        for (a, b), first in self.pairs.items():
            values[first + place[a] * len(self.kept[b]) + place[b]] = 1.0
        return values


def keep_all(problem: Problem) -> Kept:
    """Every candidate but those of fixed slots."""
    return [list(problem.choices(slot)) for slot in range(len(problem.slots))]


def keep_what_fits(problem: Problem, kept: Kept) -> Kept:
    """Without candidates that exceed a limit even if everything else is at its least; a slot may lose all of them."""
    for row in problem.rows:
        if not math.isfinite(row.limit):
            continue
        columns = Columns(problem, kept, [row])
        form = columns.of_row(row)
        room = form.room(row)
        if room < 0:
            return [[] for _ in kept]
        fits = form.coefficients <= room
        kept = [
            [c for c, fit in zip(old, fits[columns.span(slot)], strict=True) if fit] if slot in columns.slots else old
            for slot, old in enumerate(kept)
        ]
        if not all(kept):
            break
    return kept


def keep_useful(problem: Problem, costs: Sequence[Array], kept: Kept) -> Kept:
    """Without candidates that another of the slot beats or equals in cost and in every row.

    Safe for one solution of the additive problem only: a second best may need what is dropped here.
    """
    tables: list[list[Array]] = [[values[:, None]] for values in costs]
    for row in problem.rows:
        for slot, amounts in row.linear.items():
            tables[slot].append(amounts[:, None])
        for a, b, amounts in row.products:
            tables[a].append(amounts[:, kept[b]])
            tables[b].append(amounts[kept[a]].T)
    return [_undominated(np.concatenate(table, axis=1), old) for table, old in zip(tables, kept, strict=True)]


def _undominated(table: Array, kept: list[int]) -> list[int]:
    values = table[kept]
    better = np.all(values[:, None] <= values[None], axis=2)  # [i, j]: i is no worse than j anywhere
    first = np.tri(len(kept), k=-1, dtype=bool).T  # of equals, the first stays
    beaten = better & (~better.T | first)
    return [c for c, gone in zip(kept, beaten.any(axis=0), strict=True) if not gone]
