"""What an assignment uses and costs, summed so that neither the order of slots nor the machine matters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from detent.mixed_precision.problem import Problem, Row

__all__ = ["additive_error", "is_feasible", "joint_error", "next_wider", "row_steps", "row_use"]

Array = npt.NDArray[np.float64]


def row_use(row: Row, assignment: Sequence[int]) -> float:
    """The amount of a resource, correctly rounded; exact where amounts are whole numbers."""
    terms = [row.constant]
    terms += [float(amounts[assignment[slot]]) for slot, amounts in row.linear.items()]
    terms += [float(amounts[assignment[a], assignment[b]]) for a, b, amounts in row.products]
    return math.fsum(terms)


def is_feasible(problem: Problem, assignment: Sequence[int]) -> bool:
    """Whether an assignment keeps what is fixed and exceeds no limit."""
    if any(assignment[slot] != candidate for slot, candidate in problem.fixed.items()):
        return False
    return all(row_use(row, assignment) <= row.limit for row in problem.rows)


def additive_error(problem: Problem, assignment: Sequence[int]) -> float:
    """The sum of the costs, correctly rounded."""
    return math.fsum(float(costs[candidate]) for costs, candidate in zip(problem.costs, assignment, strict=True))


def joint_error(problem: Problem, assignment: Sequence[int]) -> float:
    """`|sum_s factors[s][a_s]|^2 / K`, added slot by slot, then probe by probe with one rounding."""
    assert problem.factors is not None
    total = np.zeros(problem.factors[0].shape[1])
    for factors, candidate in zip(problem.factors, assignment, strict=True):
        total = total + factors[candidate]
    return math.fsum((total * total).tolist()) / len(total)


def next_wider(problem: Problem, assignment: Sequence[int]) -> dict[int, int]:
    """The candidate of the next larger width, for each slot that is free and not at its widest."""
    wider = {}
    for s, slot in enumerate(problem.slots):
        beyond = [c for c, width in enumerate(slot.widths) if width > slot.widths[assignment[s]]]
        if beyond and s not in problem.fixed:
            wider[s] = min(beyond, key=slot.widths.__getitem__)
    return wider


def row_steps(row: Row, assignment: Sequence[int], steps: dict[int, int]) -> dict[int, float]:
    """How much more of a resource each step of one slot uses."""
    more = dict.fromkeys(steps, 0.0)
    for slot, amounts in row.linear.items():
        if slot in more:
            more[slot] += float(amounts[steps[slot]] - amounts[assignment[slot]])
    for a, b, amounts in row.products:
        now = amounts[assignment[a], assignment[b]]
        if a in more:
            more[a] += float(amounts[steps[a], assignment[b]] - now)
        if b in more:
            more[b] += float(amounts[assignment[a], steps[b]] - now)
    return more
