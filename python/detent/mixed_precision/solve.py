"""Mixed precision: the widths with the least output error within all limits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detent.errors import ConfigError
from detent.mixed_precision.additive import find_least
from detent.mixed_precision.amounts import additive_error, joint_error, next_wider, row_steps, row_use
from detent.mixed_precision.joint import find_joint
from detent.mixed_precision.problem import Problem

__all__ = ["Solution", "solution_of", "solve"]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Which candidate each slot gets.

    Args:
        assignment: the index of the candidate, by slot.
        objective: its error, a sum of costs or, with interactions, `|sum_s factors[s][a_s]|^2 / K`.
        bound: proved: no assignment within the limits has a lower error.
        gap: `(objective - bound) / objective`, 0 if both are 0.
        binding: rows whose limit forbids some slot the next larger width though that would lower the error.
        use: the amount of each row.
    """

    assignment: tuple[int, ...]
    objective: float
    bound: float
    gap: float
    binding: tuple[str, ...]
    use: Mapping[str, float]


def solve(
    problem: Problem,
    *,
    interactions: bool = False,
    gap: float = 1e-4,
    time_limit_s: float = 60.0,
    distinct: int = 1,
    start: Sequence[int] | None = None,
) -> list[Solution]:
    """Find the assignments with the least error within all limits, best first.

    Without interactions an integer program is solved to the gap asked for. With interactions the error is a quadratic
    form: small problems are solved exactly by branch and bound; for others a local search improves on the additive
    solution, and the gap reported, against a convex relaxation, can be wide. The joint error is the one along the
    probes given: with fewer probes than candidates, the least of it is partly chance, and can be worse than the
    additive solution along other probes.

    Args:
        problem: slots, costs, limits.
        interactions: minimize the joint error given by the problem's factors instead of the sum of costs.
        gap: relative gap at which a search may stop.
        time_limit_s: when to stop with the best found; results depend on the machine only if it is reached.
        distinct: how many different assignments; fewer come back if fewer are found.
        start: an assignment to begin with; it need not keep the limits.

    Raises:
        InfeasibleBudgetError: no assignment keeps the limits.
        ConfigError: an argument is wrong, or nothing was found in time.
    """
    _check_options(problem, interactions, gap, time_limit_s, distinct)
    start = None if start is None else _checked_start(problem, start)
    deadline_s = time.monotonic() + time_limit_s
    if interactions:
        found = find_joint(problem, gap=gap, deadline_s=deadline_s, distinct=distinct, start=start)
    else:
        found = find_least(problem, problem.costs, gap=gap, deadline_s=deadline_s, distinct=distinct, start=start)
    solutions = [solution_of(problem, assignment, found.bound, interactions) for assignment in found.assignments]
    return sorted(solutions, key=lambda solution: (solution.objective, solution.assignment))


def solution_of(problem: Problem, assignment: tuple[int, ...], bound: float, interactions: bool) -> Solution:
    """The figures of an assignment.

    Args:
        problem: that it is of.
        assignment: within the limits.
        bound: no assignment within the limits has a lower error.
        interactions: whether errors add up or cancel.
    """
    error = joint_error if interactions else additive_error
    objective = error(problem, assignment)
    bound = max(0.0, min(bound, objective))
    return Solution(
        assignment=assignment,
        objective=objective,
        bound=bound,
        gap=(objective - bound) / objective if objective > 0 else 0.0,
        binding=_binding(problem, assignment, interactions),
        use={row.name: row_use(row, assignment) for row in problem.rows},
    )


def _binding(problem: Problem, assignment: tuple[int, ...], interactions: bool) -> tuple[str, ...]:
    """The rows that forbid a step to the next larger width which would lower the error."""
    steps = next_wider(problem, assignment)
    gains = (
        _gains(problem, assignment, steps)
        if interactions
        else {
            slot: float(problem.costs[slot][assignment[slot]] - problem.costs[slot][wider])
            for slot, wider in steps.items()
        }
    )
    useful = {slot: wider for slot, wider in steps.items() if gains[slot] > 0}
    binding = []
    for row in problem.rows:
        more = row_steps(row, assignment, useful)
        room = row.limit - row_use(row, assignment)
        if any(step > room for step in more.values()):
            binding.append(row.name)
    return tuple(binding)


def _gains(problem: Problem, assignment: tuple[int, ...], steps: Mapping[int, int]) -> dict[int, float]:
    """How much each step of one slot lowers the joint error, times K."""
    assert problem.factors is not None
    total = np.sum([factors[c] for factors, c in zip(problem.factors, assignment, strict=True)], axis=0)
    changes = {
        slot: problem.factors[slot][wider] - problem.factors[slot][assignment[slot]] for slot, wider in steps.items()
    }
    return {slot: -float((2 * total + change) @ change) for slot, change in changes.items()}


def _check_options(problem: Problem, interactions: bool, gap: float, time_limit_s: float, distinct: int) -> None:
    if not isinstance(problem, Problem):
        raise ConfigError(f"problem must be a Problem, got {type(problem).__name__}")
    if interactions and problem.factors is None:
        raise ConfigError("interactions need the factors of a problem", remedy="give factors, or interactions=False")
    if not _is_real(gap) or not 0 <= gap < 1:
        raise ConfigError(f"gap must be at least 0 and below 1, got {gap!r}")
    if not _is_real(time_limit_s) or not time_limit_s > 0:
        raise ConfigError(f"time_limit_s must be a positive number, got {time_limit_s!r}")
    if isinstance(distinct, bool) or not isinstance(distinct, int) or distinct < 1:
        raise ConfigError(f"distinct must be a whole number of at least 1, got {distinct!r}")


def _is_real(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool)


def _checked_start(problem: Problem, start: Sequence[int]) -> tuple[int, ...]:
    if len(start) != len(problem.slots):
        raise ConfigError(f"start must hold one candidate per slot: {len(problem.slots)} slots, got {len(start)}")
    for slot, candidate, count in zip(problem.slots, start, problem.counts, strict=True):
        whole = isinstance(candidate, (int, np.integer)) and not isinstance(candidate, bool)
        if not whole or not 0 <= candidate < count:
            raise ConfigError(f"start holds {candidate!r}, not in 0..{count - 1}", where=f"slot {slot.name!r}")
    return tuple(int(candidate) for candidate in start)
