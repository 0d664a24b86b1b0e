"""The end of the additive search: all that has small reduced costs is looked at, and nothing else can be better.

With multipliers m of the limits, an assignment a within them costs at least `bound + sum_s reduced[s][a_s]`. The linear
relaxation gives the multipliers; what is left between its bound and the best assignment is a band so narrow that few
candidates of few slots fit into it, and it is searched to the end (csrc/search/assignment_band.cpp). This holds for
rows without products, where reduced costs belong to slots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detent.kernels.assignment_search import AssignmentProblem, search_band
from detent.mixed_precision.columns import Columns, Form
from detent.mixed_precision.programs import Constraints, Relaxation

__all__ = ["Band", "search_in_band"]

Array = npt.NDArray[np.float64]

_NODES: Final = 20_000_000
"""Nodes of one search: a second or two."""
_FIRST: Final = 30
"""The first band holds about so many candidates that deviate."""
_ROUNDS: Final = 60
_ROUNDING: Final = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """What a search in a band found.

    Args:
        assignments: columns chosen, one per slot with a choice, best first.
        bound: of all assignments within the limits.
        complete: the assignments are the best there are, to the gap asked for.
        useful: columns that an assignment better than the worst found may have.
    """

    assignments: list[npt.NDArray[np.int64]]
    bound: float
    complete: bool
    useful: npt.NDArray[np.bool_]


def search_in_band(
    columns: Columns,
    constraints: Constraints,
    costs: Form,
    forms: Sequence[Form],
    rooms: Sequence[float],
    *,
    gap: float,
    distinct: int,
    deadline_s: float,
) -> Band | None:
    """The best assignments of a program without pairs; None if it has no relaxed solution, or there is no time for it.

    Args:
        columns: without pairs.
        constraints: begun with the choices of the columns, then a limit for each form.
        costs: what is minimized.
        forms: what is limited.
        rooms: what each form may use beyond its constant.
        gap: relative gap.
        distinct: how many assignments.
        deadline_s: when to stop, on the monotonic clock.
    """
    relaxed = Relaxation(constraints).solve(costs.coefficients, deadline_s - time.monotonic())
    if relaxed is None:
        return None
    multipliers = np.array([max(0.0, -constraints.dual_of_limit(relaxed.duals, i)) for i in range(len(forms))])
    total = costs.coefficients.copy()
    for multiplier, form in zip(multipliers, forms, strict=True):
        total += multiplier * form.coefficients
    firsts = np.array([first for first, _ in columns.blocks], dtype=np.int64)
    least = np.minimum.reduceat(total, firsts)
    reduced = total - np.repeat(least, [size for _, size in columns.blocks])
    spent = [-float(m) * room for m, room in zip(multipliers, rooms, strict=True)]
    bound = max(costs.constant, math.fsum([costs.constant, *least.tolist(), *spent]))
    problem = AssignmentProblem(
        first=np.append(firsts, columns.size),
        factors=np.zeros((0, columns.size)),
        # The constant is a cost of the first slot's candidates: errors are whole sums, to which gaps refer.
        costs=costs.coefficients + costs.constant * (np.arange(columns.size) < columns.blocks[0][1]),
        amounts=np.array([form.coefficients for form in forms]).reshape(len(forms), columns.size),
        limits=np.array(rooms, dtype=np.float64),
        product=np.zeros((0, 3), np.int64),
        product_amounts=np.zeros(0),
    )
    return _widen(problem, reduced, bound, gap, distinct, deadline_s)


def _widen(
    problem: AssignmentProblem, reduced: Array, bound: float, gap: float, distinct: int, deadline_s: float
) -> Band:
    """Search wider and wider bands until what was found is known to be best."""
    deviations = np.sort(reduced[reduced > 0])
    width = float(deviations[min(_FIRST, len(deviations) - 1)]) if len(deviations) else 0.0
    found: list[npt.NDArray[np.int64]] = []
    complete, worst = False, math.inf
    for _ in range(_ROUNDS):
        upper = bound + width
        result = search_band(
            problem, reduced=reduced, bound=bound, upper=upper, gap=gap, most_nodes=_NODES, wanted=distinct
        )
        if len(result.errors) and (len(result.errors) > len(found) or result.errors[-1] <= worst):
            found = list(result.assignments)
            worst = float(result.errors[-1]) if len(found) == distinct else math.inf
        if not result.complete:
            break
        # All is seen that costs no more than the band is wide; what is left must not be better than the worst found.
        if worst * (1 - gap) <= upper or width >= float(reduced.sum()):
            complete = True
            break
        if time.monotonic() > deadline_s:
            break
        # In small steps: with a better assignment found in a narrow band, the wider one may not be needed.
        width = min(2 * width + _ROUNDING * abs(bound), max(width, worst * (1 - gap) - bound))
        width = width if width > 0 else float(reduced.sum())
    # What was left out costs at least as much as the worst found, but for the gap; the best is no worse than that.
    proved = max(bound, float(result.errors[0]) * (1 - gap)) if complete and found else bound
    return Band(assignments=found, bound=proved, complete=complete, useful=bound + reduced <= worst)
