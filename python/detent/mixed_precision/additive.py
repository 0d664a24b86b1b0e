"""The additive problem: costs of slots add up, and an integer program finds their least sum within the limits."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detent.errors import ConfigError
from detent.mixed_precision.amounts import is_feasible, row_use
from detent.mixed_precision.band import search_in_band
from detent.mixed_precision.columns import Columns, Kept, keep_all, keep_useful, keep_what_fits
from detent.mixed_precision.infeasible import explain_infeasible
from detent.mixed_precision.problem import Problem
from detent.mixed_precision.programs import Constraints, Outcome, solve_integer

__all__ = ["Found", "find_least"]

Array = npt.NDArray[np.float64]

_ATTEMPTS: Final = 40
_EXCLUSIONS: Final = 4
"""Assignments that exceed a limit by rounding are forbidden one by one, so often; then limits are tightened."""
_COARSE: Final = 1e-3
"""A least sum below this share of the largest cost is searched again with costs in its own units."""
_ROUNDING: Final = 1e-9
"""Bounds are lowered by this share: the tolerance of the program."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Assignments with least sums of costs, best first.

    Args:
        assignments: different ones.
        bound: no assignment within the limits has a lower sum.
    """

    assignments: list[tuple[int, ...]]
    bound: float


def find_least(
    problem: Problem,
    costs: Sequence[Array],
    *,
    gap: float,
    deadline_s: float,
    distinct: int = 1,
    start: Sequence[int] | None = None,
) -> Found:
    """The assignments within all limits whose costs add up to the least.

    Args:
        problem: slots, rows and what is fixed.
        costs: of each candidate, `[n_candidates]` per slot, not negative.
        gap: relative gap within which each is the least but for those before it.
        deadline_s: when to stop, on the monotonic clock.
        distinct: how many assignments; fewer come back if there are no more.
        start: an assignment to begin with.

    Raises:
        InfeasibleBudgetError: no assignment keeps the limits.
        ConfigError: none was found in time.
    """
    kept = keep_what_fits(problem, keep_all(problem))
    if not all(kept):
        raise explain_infeasible(problem, deadline_s)
    if distinct == 1:
        kept = keep_useful(problem, costs, kept)
    search = _Search(problem, costs, kept)
    found, complete = search.find_in_band(gap, deadline_s, distinct)
    if found.assignments and not complete:
        start = found.assignments[0]
    if not complete:
        found = _one_by_one(search, gap, deadline_s, distinct, start)
    if found.assignments:
        return found
    if start is not None and is_feasible(problem, start):
        return Found(assignments=[tuple(start)], bound=found.bound)
    if time.monotonic() >= deadline_s:
        raise ConfigError("no assignment within the limits was found in time", remedy="raise time_limit_s")
    raise explain_infeasible(problem, deadline_s)


def _one_by_one(search: _Search, gap: float, deadline_s: float, distinct: int, start: Sequence[int] | None) -> Found:
    """The least by the integer program, then the least but for that one, and so on."""
    first, bound = search.find(gap, deadline_s, start)
    assignments = [] if first is None else [first]
    while assignments and len(assignments) < distinct and search.columns.size > 0:
        search.constraints.exclude(assignments[-1])
        following, _ = search.find(gap, deadline_s, None)
        if following is None:
            break
        assignments.append(following)
    return Found(assignments=assignments, bound=bound)


class _Search:
    """The integer program of a problem, in the units that suit it.

    Args:
        problem: slots and rows.
        costs: what is minimized.
        kept: candidates in play, one or more per slot.
    """

    def __init__(self, problem: Problem, costs: Sequence[Array], kept: Kept) -> None:
        self.problem = problem
        self.rows = [row for row in problem.rows if math.isfinite(row.limit)]
        self.columns = Columns(problem, kept, self.rows)
        self.costs = self.columns.of_costs(costs)
        self.forms = [self.columns.of_row(row) for row in self.rows]
        self.constraints = Constraints(self.columns)
        for row, form in zip(self.rows, self.forms, strict=True):
            self.constraints.add_limit(form.coefficients, form.room(row))

        self.upper: Array | None = None  # 0 for columns that nothing better than what is known has

    def find_in_band(self, gap: float, deadline_s: float, distinct: int) -> tuple[Found, bool]:
        """The least assignments if a search in the band of small reduced costs comes to an end; else what it found."""
        columns, nothing = self.columns, Found(assignments=[], bound=self.costs.constant)
        if columns.pairs or columns.size == 0:
            return nothing, False
        rooms = [form.room(row) for row, form in zip(self.rows, self.forms, strict=True)]
        band = search_in_band(
            columns,
            self.constraints,
            self.costs,
            self.forms,
            rooms,
            gap=gap,
            distinct=distinct,
            deadline_s=deadline_s,
        )
        if band is None:
            return nothing, False
        assignments = []
        for chosen in band.assignments:
            values = np.zeros(columns.size)
            values[chosen] = 1.0
            assignments.append(columns.assignment(values))
        exact = [assignment for assignment in assignments if is_feasible(self.problem, assignment)]
        if len(exact) == len(assignments):
            self.upper = band.useful.astype(np.float64)
            return Found(assignments=exact, bound=band.bound), band.complete
        return Found(assignments=exact, bound=band.bound), False

    def find(self, gap: float, deadline_s: float, start: Sequence[int] | None) -> tuple[tuple[int, ...] | None, float]:
        """The least assignment that is not excluded, None if there is none, and a bound on all such."""
        costs, constraints = self.costs, self.constraints.copied()
        # Costs are not negative, so the constant is a bound, and to begin with the only one.
        bound, unit = costs.constant, float(max(costs.coefficients.max(initial=0.0), costs.constant)) or 1.0
        values, upper, tightened = self._values(start), self.upper, False
        for attempt in range(_ATTEMPTS):
            outcome = self._run(constraints, unit, gap, deadline_s, values, upper)
            if outcome.status == "infeasible" or outcome.values is None:
                return None, bound
            if not tightened:
                bound = max(bound, (outcome.bound - _ROUNDING * abs(outcome.bound)) * unit)
            assignment = self.columns.assignment(outcome.values)
            excess = self._excess(assignment)
            if any(more > 0 for more in excess):
                constraints.exclude(assignment)
                tightened = attempt >= _EXCLUSIONS
                if tightened:
                    self._tighten(constraints, excess, 8.0 ** (attempt - _EXCLUSIONS))
                continue
            values = self.columns.values(assignment)
            total = costs.constant + float(costs.coefficients @ values)
            bound = min(bound, total)
            if total >= _COARSE * unit or total - bound <= gap * total or outcome.status == "stopped":
                return assignment, bound
            # What costs more than all of a known assignment can be left out, and costs measured in its units.
            affordable = (costs.coefficients <= total - costs.constant).astype(np.float64)
            upper, unit = affordable if self.upper is None else affordable * self.upper, total
        return None, bound

    def _run(
        self,
        constraints: Constraints,
        unit: float,
        gap: float,
        deadline_s: float,
        values: Array | None,
        upper: Array | None,
    ) -> Outcome:
        if self.columns.size == 0:
            return Outcome(status="optimal", values=np.zeros(0), bound=self.costs.constant / unit)
        costs = self.costs.coefficients / unit
        if upper is not None:
            costs = costs * upper  # columns held at zero, whose costs may be beyond all measure
        return solve_integer(
            constraints,
            costs,
            self.costs.constant / unit,
            gap=gap,
            time_limit_s=deadline_s - time.monotonic(),
            start=values,
            upper=upper,
        )

    def _values(self, start: Sequence[int] | None) -> Array | None:
        """The columns of a start, if it keeps the limits and its candidates are all in play."""
        if start is None or not all(c in kept for c, kept in zip(start, self.columns.kept, strict=True)):
            return None
        return self.columns.values(start) if is_feasible(self.problem, start) else None

    def _excess(self, assignment: Sequence[int]) -> list[float]:
        return [row_use(row, assignment) - row.limit for row in self.rows]

    def _tighten(self, constraints: Constraints, excess: Sequence[float], factor: float) -> None:
        for row, form, more in zip(self.rows, self.forms, excess, strict=True):
            if more > 0:
                constraints.add_limit(form.coefficients, row.limit - form.constant - factor * more)
