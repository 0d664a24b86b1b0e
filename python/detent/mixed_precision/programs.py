"""Linear and integer programs, solved by HiGHS (https://highs.dev) on one thread: the same answer every time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import highspy
import numpy as np
import numpy.typing as npt

from detent.mixed_precision.columns import Columns

__all__ = ["Constraints", "Outcome", "Relaxation", "Relaxed", "solve_integer"]

Array = npt.NDArray[np.float64]

_TOLERANCE: Final = 1e-9
_OPTIONS: Final[dict[str, Any]] = {
    "output_flag": False,
    "threads": 1,
    "random_seed": 0,
    "small_matrix_value": 1e-12,
    "primal_feasibility_tolerance": _TOLERANCE,
    "dual_feasibility_tolerance": _TOLERANCE,
    "mip_feasibility_tolerance": _TOLERANCE,
    "mip_abs_gap": 0.0,
    # Rounds of cuts at nodes cost more than they prune here: 7 s instead of 3 s for 200 slots and three rows.
    "mip_allow_cut_separation_at_nodes": False,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a run ended with.

    Args:
        status: `"stopped"` by the time limit, with or without values.
        values: of the columns; None if none were found.
        bound: a lower bound of the objective.
    """

    status: Literal["optimal", "infeasible", "stopped"]
    values: Array | None
    bound: float


class Constraints:
    """Sparse rows `lower <= matrix . columns <= upper`, begun with what makes columns choices.

    Args:
        columns: the columns; each slot chooses one candidate, and pairs agree with their slots.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.lower: list[float] = []
        self.upper: list[float] = []
        self._indices: list[npt.NDArray[np.int32]] = []
        self._values: list[Array] = []
        self._limits: list[tuple[int, float]] = []  # row and unit of each limit; row -1 for one without columns
        for slot in columns.slots:
            span = columns.span(slot)
            self.add(np.arange(span.start, span.stop), np.ones(span.stop - span.start), 1.0, 1.0)
        for (a, b), first in columns.pairs.items():
            block = first + np.arange(len(columns.kept[a]) * len(columns.kept[b])).reshape(len(columns.kept[a]), -1)
            for slot, lines in ((a, block), (b, block.T)):
                for place, line in enumerate(lines):
                    column = columns.slots[slot] + place
                    self.add(np.append(line, column), np.append(np.ones(len(line)), -1.0), 0.0, 0.0)

    def add(self, indices: npt.NDArray[Any], values: Array, lower: float, upper: float) -> None:
        """Append a row."""
        self._indices.append(np.asarray(indices, dtype=np.int32))
        self._values.append(values)
        self.lower.append(lower)
        self.upper.append(upper)

    def add_limit(self, coefficients: Array, limit: float) -> None:
        """Append `coefficients . columns <= limit`, scaled by a power of two so that the largest is about 1000."""
        indices = np.flatnonzero(coefficients)
        if len(indices) == 0:
            self._limits.append((-1, 1.0))
            return
        unit = 2.0 ** (9 - math.frexp(float(coefficients[indices].max()))[1])
        self._limits.append((len(self.lower), unit))
        self.add(indices, coefficients[indices] * unit, -math.inf, limit * unit)

    def dual_of_limit(self, duals: Array, limit: int) -> float:
        """The dual of the n-th limit added, in the limit's own units."""
        row, unit = self._limits[limit]
        return float(duals[row]) * unit if row >= 0 else 0.0

    def exclude(self, assignment: Sequence[int]) -> None:
        """Forbid one assignment of candidates in play."""
        slots = self.columns.slots
        ones = np.array([slots[s] + self.columns.kept[s].index(assignment[s]) for s in slots])
        self.add(ones, np.ones(len(ones)), -math.inf, len(ones) - 1.0)

    def copied(self) -> Constraints:
        """The same rows, to which others may be added."""
        other = Constraints.__new__(Constraints)
        other.columns = self.columns
        other.lower, other.upper = list(self.lower), list(self.upper)
        other._indices, other._values = list(self._indices), list(self._values)
        other._limits = list(self._limits)
        return other

    def model(self, costs: Array, offset: float, integer: bool, upper: Array | None = None) -> highspy.HighsLp:
        """The program that minimizes `offset + costs . columns`."""
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self.columns.size, len(self.lower)
        lp.col_cost_, lp.offset_ = costs, offset
        lp.col_lower_ = np.zeros(self.columns.size)
        lp.col_upper_ = np.ones(self.columns.size) if upper is None else upper
        lp.row_lower_, lp.row_upper_ = np.array(self.lower), np.array(self.upper)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.num_col_, lp.a_matrix_.num_row_ = lp.num_col_, lp.num_row_
        starts = np.concatenate([[0], np.cumsum([len(line) for line in self._indices])])
        lp.a_matrix_.start_ = starts.astype(np.int32)
        lp.a_matrix_.index_ = np.concatenate([np.zeros(0, np.int32), *self._indices])
        lp.a_matrix_.value_ = np.concatenate([np.zeros(0), *self._values])
        if integer:
            whole, real = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
            columns = self.columns
            lp.integrality_ = [whole] * columns.candidates + [real] * (columns.size - columns.candidates)
        return lp

    def matrix_product(self, duals: Array) -> Array:
        """`duals . matrix`, by column."""
        if not self._indices:
            return np.zeros(self.columns.size)
        lengths = [len(line) for line in self._indices]
        weights = np.concatenate(self._values) * np.repeat(duals, lengths)
        columns = np.concatenate(self._indices)
        return np.bincount(columns, weights=weights, minlength=self.columns.size).astype(np.float64)


def _prepare(lp: highspy.HighsLp, **options: Any) -> highspy.Highs:
    """A solver that holds a program.

    Raises:
        RuntimeError: HiGHS refuses the program, which is our mistake.
    """
    solver: highspy.Highs = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in {**_OPTIONS, **options}.items():
        if solver.setOptionValue(name, value) == highspy.HighsStatus.kError:
            raise RuntimeError(f"HiGHS does not take the option {name}={value!r}")
    if solver.passModel(lp) == highspy.HighsStatus.kError:
        raise RuntimeError("HiGHS does not take the program")
    return solver


def _run(solver: highspy.Highs) -> None:
    """Solve what a solver holds.

    Raises:
        RuntimeError: HiGHS fails.
    """
    if solver.run() == highspy.HighsStatus.kError:
        # HiGHS has one set of threads per process; someone else started it with another number of them.
        highspy.Highs.resetGlobalScheduler(True)
        if solver.run() == highspy.HighsStatus.kError:
            raise RuntimeError(f"HiGHS fails with {solver.getModelStatus()}")


def solve_integer(
    constraints: Constraints,
    costs: Array,
    offset: float,
    *,
    gap: float,
    time_limit_s: float,
    start: Array | None = None,
    upper: Array | None = None,
) -> Outcome:
    """Minimize `offset + costs . columns` over choices.

    Args:
        constraints: what columns satisfy.
        costs: of columns.
        offset: added to the objective; the gap is relative to the sum.
        gap: relative gap at which to stop.
        time_limit_s: when to stop.
        start: values of the columns to begin with.
        upper: greatest values of columns, 1 if None.
    """
    solver = _prepare(
        constraints.model(costs, offset, True, upper), mip_rel_gap=gap, time_limit=max(time_limit_s, 0.01)
    )
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = start.tolist()
        solution.value_valid = True
        solver.setSolution(solution)
    _run(solver)
    info, status = solver.getInfo(), solver.getModelStatus()
    statuses = highspy.HighsModelStatus
    if status in (statuses.kInfeasible, statuses.kUnboundedOrInfeasible):
        return Outcome(status="infeasible", values=None, bound=math.inf)
    found = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
    return Outcome(
        status="optimal" if status in (statuses.kOptimal, statuses.kModelEmpty) else "stopped",
        values=np.array(solver.getSolution().col_value)[: len(costs)] if found else None,
        bound=info.mip_dual_bound,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Relaxed:
    """A solution of a linear program.

    Args:
        values: of the columns, between 0 and 1.
        duals: of the rows; positive where a lower end holds, negative where an upper one does.
        bound: proved by the duals alone, so no tolerance can lift it above the least.
    """

    values: Array
    duals: Array
    bound: float


class Relaxation:
    """The linear program that lets choices be mixtures, solved again and again for other costs.

    Args:
        constraints: what columns satisfy.
    """

    def __init__(self, constraints: Constraints) -> None:
        self._constraints = constraints
        self._lower, self._upper = np.array(constraints.lower), np.array(constraints.upper)
        size = constraints.columns.size
        self._indices = np.arange(size, dtype=np.int32)
        self._solver = _prepare(constraints.model(np.zeros(size), 0.0, False))

    def solve(self, costs: Array, time_limit_s: float) -> Relaxed | None:
        """The least `costs . columns`; None if there is no solution, or not in time."""
        unit = float(np.abs(costs).max(initial=0.0)) or 1.0
        self._solver.changeColsCost(len(costs), self._indices, costs / unit)
        self._solver.setOptionValue("time_limit", self._solver.getRunTime() + max(time_limit_s, 0.01))
        _run(self._solver)
        if self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = self._solver.getSolution()
        duals = np.array(solution.row_dual) * unit
        # A dual whose end is infinite is rounding.
        duals[(duals > 0) & np.isneginf(self._lower)] = 0.0
        duals[(duals < 0) & np.isposinf(self._upper)] = 0.0
        return Relaxed(values=np.clip(solution.col_value, 0.0, 1.0), duals=duals, bound=self._bound(costs, duals))

    def _bound(self, costs: Array, duals: Array) -> float:
        """The bound that any duals prove where columns are within 0..1 (Neumaier and Shcherbina 2004,
        doi:10.1007/s10107-003-0433-3)."""
        ends = np.where(duals > 0, self._lower, np.where(duals < 0, self._upper, 0.0))
        reduced = costs - self._constraints.matrix_product(duals)
        return math.fsum([*(duals * ends).tolist(), *np.minimum(reduced, 0.0).tolist()])
