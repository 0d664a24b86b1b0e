"""The problem with interactions: changes of slots add up or cancel, and the error is a quadratic form."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from detent.kernels.assignment_search import AssignmentProblem, AssignmentSearch, search_nearby, search_tree
from detent.mixed_precision.additive import Found, find_least
from detent.mixed_precision.amounts import is_feasible, joint_error
from detent.mixed_precision.columns import Columns, Form, Kept, keep_all, keep_what_fits
from detent.mixed_precision.mixtures import Mixture, find_mixture, stack_factors
from detent.mixed_precision.problem import Problem
from detent.mixed_precision.programs import Constraints

__all__ = ["find_joint"]

Array = npt.NDArray[np.float64]
Assignment = tuple[int, ...]

_FEW: Final = 1_000_000
"""So many assignments, or so many slots with a choice as `_FEW_SLOTS`, are searched exactly."""
_FEW_SLOTS: Final = 12
_NODES: Final = 4_000_000_000
"""Multiplications of the exact search at its nodes, about; so many nodes as assignments are allowed in any case."""
_WORK: Final = 500_000_000
"""Multiplications of a local search, about."""
_STEPS: Final = (40, 1500)
_ROUNDING: Final = 1e-12
_START_GAP: Final = 1e-3
"""Gap of integer programs that only give the local search a place to start."""


def find_joint(problem: Problem, *, gap: float, deadline_s: float, distinct: int, start: Sequence[int] | None) -> Found:
    """The assignments within all limits with about the least joint error; the least, to the gap, for small problems.

    None of them is worse than the additive solution.

    Args:
        problem: with factors.
        gap: relative gap at which the exact search may stop.
        deadline_s: when to stop, on the monotonic clock.
        distinct: how many assignments.
        start: an assignment to begin with.

    Raises:
        InfeasibleBudgetError: no assignment keeps the limits.
        ConfigError: none was found in time.
    """
    additive = find_least(problem, problem.costs, gap=gap, deadline_s=deadline_s, start=start).assignments[0]
    kept = keep_what_fits(problem, keep_all(problem))
    search = _Joint(problem, kept)
    mixture = search.mixture(additive, deadline_s)
    known = [additive, *([tuple(start)] if start is not None and is_feasible(problem, start) else [])]
    pool = {assignment: joint_error(problem, assignment) for assignment in known}
    for begun in dict.fromkeys([*search.other_starts(additive, mixture, deadline_s), *reversed(known)]):
        if time.monotonic() > deadline_s:
            break
        for assignment in [begun, *search.nearby(begun, distinct)]:
            if assignment not in pool and is_feasible(problem, assignment):
                pool[assignment] = joint_error(problem, assignment)
    bound = 0.0 if mixture is None else mixture.bound
    if search.is_small():
        bound = max(bound, search.exact(pool, mixture, gap, distinct))
    best = sorted(pool, key=lambda assignment: (pool[assignment], assignment))[:distinct]
    return Found(assignments=best, bound=bound)


class _Joint:
    """A problem with its arrays.

    Args:
        problem: with factors.
        kept: candidates in play.
    """

    def __init__(self, problem: Problem, kept: Kept) -> None:
        self.problem = problem
        self.kept = kept
        self.rows = [row for row in problem.rows if math.isfinite(row.limit)]
        self.columns = Columns(problem, kept, self.rows)
        self.first = np.concatenate([[0], np.cumsum([len(candidates) for candidates in kept])]).astype(np.int64)
        self.factors = stack_factors(problem, kept)
        self.arrays = self._arrays()

    def _arrays(self) -> AssignmentProblem:
        amounts = np.zeros((len(self.rows), int(self.first[-1])))
        product, parts = [], [np.zeros(0)]
        for r, row in enumerate(self.rows):
            for slot, linear in row.linear.items():
                amounts[r, self.first[slot] : self.first[slot + 1]] += linear[self.kept[slot]]
            for a, b, given in row.products:
                product.append((r, a, b))
                parts.append(given[np.ix_(self.kept[a], self.kept[b])].ravel())
        limits = [Form(constant=row.constant, coefficients=np.zeros(0)).room(row) for row in self.rows]
        return AssignmentProblem(
            first=self.first,
            factors=self.factors,
            costs=np.zeros(int(self.first[-1])),
            amounts=amounts,
            limits=np.array(limits, dtype=np.float64),
            product=np.array(product, dtype=np.int64).reshape(-1, 3),
            product_amounts=np.concatenate(parts),
        )

    def mixture(self, start: Assignment, deadline_s: float) -> Mixture | None:
        """The least over mixtures; None if no slot has a choice."""
        columns = self.columns
        if columns.size == 0:
            return None
        constraints = Constraints(columns)
        for row in self.rows:
            form = columns.of_row(row)
            constraints.add_limit(form.coefficients, form.room(row))
        free = np.repeat([len(candidates) > 1 for candidates in self.kept], np.diff(self.first))
        return find_mixture(
            np.ascontiguousarray(self.factors[:, free]),
            self.factors[:, ~free].sum(axis=1),
            columns,
            constraints,
            len(self.rows),
            columns.values(start),
            deadline_s=deadline_s,
        )

    def other_starts(self, additive: Assignment, mixture: Mixture | None, deadline_s: float) -> list[Assignment]:
        """Additive solutions where each candidate costs what it changes, the other slots being as they are: in the
        additive solution, and in the mixture."""
        starts = []
        points = [np.concatenate([np.array(k) == c for k, c in zip(self.kept, additive, strict=True)]).astype(float)]
        if mixture is not None:
            free = np.repeat([len(candidates) > 1 for candidates in self.kept], np.diff(self.first))
            values = np.ones(int(self.first[-1]))
            values[free] = mixture.values[: self.columns.candidates]
            points.append(values)
        for point in points:
            own = np.add.reduceat(self.factors * point, self.first[:-1], axis=1)  # [K, slots]
            others = np.repeat(own.sum(axis=1, keepdims=True) - own, np.diff(self.first), axis=1)
            changes = ((2 * others + self.factors) * self.factors).sum(axis=0)
            costs = [np.zeros(count) for count in self.problem.counts]
            for slot, candidates in enumerate(self.kept):
                part = changes[self.first[slot] : self.first[slot + 1]]
                costs[slot][candidates] = part - part.min()
            found = find_least(self.problem, costs, gap=_START_GAP, deadline_s=deadline_s, start=additive)
            starts += found.assignments
        return starts

    def nearby(self, start: Assignment, wanted: int) -> list[Assignment]:
        """The best assignments that a local search meets."""
        count, probes = int(self.first[-1]), len(self.factors)
        # Of pairs of moves most are ruled out by one comparison.
        each = count * count / 2 + 2 * count * probes + self.arrays.amounts.size
        steps = int(min(max(_WORK / each, _STEPS[0]), _STEPS[1]))
        return self._read(search_nearby(self.arrays, start=self._indices(start), steps=steps, wanted=wanted))

    def is_small(self) -> bool:
        """Whether an exact search is worth trying."""
        return len(self.columns.slots) <= _FEW_SLOTS or math.prod(map(len, self.kept)) <= _FEW

    def exact(self, pool: dict[Assignment, float], mixture: Mixture | None, gap: float, distinct: int) -> float:
        """Add the best assignments to what is known, and give a bound: 0 if the search does not come to its end."""
        known = sorted(pool.values())
        upper = math.inf
        if len(known) >= distinct:  # what is known already need not be found again, but what is equal may be
            upper = known[distinct - 1] * (1 - gap) + _ROUNDING * known[distinct - 1]
        work = int(self.first[-1]) * len(self.factors) * 8
        every = math.prod(map(len, self.kept))
        result = search_tree(
            self.arrays,
            order=self._order(),
            multipliers=np.zeros(len(self.rows)) if mixture is None else mixture.multipliers,
            upper=upper,
            gap=gap,
            most_nodes=max(2 * _FEW if every <= _FEW else 0, _NODES // work),
            wanted=distinct,
        )
        fits = True
        for assignment in self._read(result):
            if is_feasible(self.problem, assignment):
                pool[assignment] = joint_error(self.problem, assignment)
            else:
                fits = False  # it took the place of another
        if not result.complete or not fits:
            return 0.0
        return min(pool.values()) * (1 - gap)

    def _order(self) -> npt.NDArray[np.int64]:
        """Slots whose candidates differ most come first: what is left matters less and less."""
        spread = [
            float(np.ptp(self.factors[:, self.first[slot] : self.first[slot + 1]], axis=1).sum())
            for slot in range(len(self.kept))
        ]
        return np.argsort(-np.array(spread), kind="stable").astype(np.int64)

    def _indices(self, assignment: Assignment) -> npt.NDArray[np.int64]:
        places = [candidates.index(c) for candidates, c in zip(self.kept, assignment, strict=True)]
        return self.first[:-1] + np.array(places, dtype=np.int64)

    def _read(self, found: AssignmentSearch) -> list[Assignment]:
        return [
            tuple(self.kept[slot][int(place)] for slot, place in enumerate(line))
            for line in found.assignments - self.first[:-1]
        ]
