"""Widths that are narrower than the limits ask for, raised where that costs nothing.

Along few directions, the errors of two tensors can seem to cancel the better the narrower one of them is. On other
samples they do not: such a width saves nothing and loses something. Of the best few distributions, the second may also
be the first with one tensor made narrower. So distributions are raised as long as the sum of the costs of single
tensors falls and all limits are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from detent.mixed_precision.amounts import is_feasible, next_wider, row_steps, row_use
from detent.mixed_precision.problem import Problem

__all__ = ["raise_for_free"]


def raise_for_free(problem: Problem, assignment: Sequence[int]) -> tuple[int, ...]:
    """The assignment with slots raised one by one, the largest saving first, to the next wider candidate.

    Args:
        problem: costs and limits.
        assignment: within the limits.

    Returns:
        One within the limits, no slot of which can be raised alone at a lower cost.
    """
    found = tuple(assignment)
    while True:
        steps, savings = {}, {}
        for slot, wider in next_wider(problem, found).items():
            saved = float(problem.costs[slot][found[slot]] - problem.costs[slot][wider])
            if saved > 0:
                steps[slot], savings[slot] = wider, saved
        for row in problem.rows:
            room, more = row.limit - row_use(row, found), row_steps(row, found, steps)
            steps = {slot: wider for slot, wider in steps.items() if more[slot] <= room}
        ordered = sorted(steps, key=lambda slot: (-savings[slot], slot))
        raised = ((*found[:slot], steps[slot], *found[slot + 1 :]) for slot in ordered)
        # Differences of amounts are rounded, so the limits have the last word.
        following = next((one for one in raised if is_feasible(problem, one)), None)
        if following is None:
            return found
        found = following
