"""Why no assignment keeps the limits, in figures."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from detent.errors import InfeasibleBudgetError
from detent.mixed_precision.amounts import row_use
from detent.mixed_precision.columns import Columns, keep_all
from detent.mixed_precision.problem import Problem, Row
from detent.mixed_precision.programs import Constraints, solve_integer

__all__ = ["explain_infeasible"]

_NAMED: Final = 3
"""How many slots a message names."""


@dataclass(frozen=True, kw_only=True)
class _Least:
    """The least amount of a row by itself, and the assignment that uses it."""

    amount: float
    assignment: tuple[int, ...]
    has_choice: bool


def explain_infeasible(problem: Problem, deadline_s: float) -> InfeasibleBudgetError:
    """The error that says which limits are too low, by how much, and which slots need most.

    Args:
        problem: known to be infeasible.
        deadline_s: when to stop looking for reasons, on the monotonic clock.
    """
    rows = [row for row in problem.rows if math.isfinite(row.limit)]
    least = {row.name: _least_use(problem, row, deadline_s) for row in rows}
    needed = {name: found.amount for name, found in least.items()}
    allowed = {row.name: row.limit for row in rows}
    short = [row for row in rows if needed[row.name] > row.limit]
    if short:
        lines = [_shortage(problem, row, least[row.name]) for row in short]
        what = "the budget is below the least achievable: " + "; ".join(lines)
        choices = any(least[row.name].has_choice for row in short)
        names = [row.name for row in short]
        remedy = "raise the limits named" + (", or give the slots named narrower candidates" if choices else "")
    else:
        names = _conflict(problem, rows, deadline_s)
        figures = ", ".join(f"{name} {needed[name]:g} of {allowed[name]:g}" for name in names)
        what = f"each limit can be kept alone, but not these together: {figures} at the least alone"
        remedy = "raise one of the limits named"
    return InfeasibleBudgetError(what, needed=needed, allowed=allowed, where=", ".join(names), remedy=remedy)


def _shortage(problem: Problem, row: Row, least: _Least) -> str:
    text = f"{row.name} needs {least.amount:g}, {row.limit:g} are allowed"
    if not least.has_choice:
        return f"{text}, and no slot has a choice that would change it"
    shares = _shares(row, least.assignment)
    largest = sorted(shares, key=lambda slot: (-shares[slot], slot))[:_NAMED]
    total = least.amount or 1.0
    named = [f"{problem.slots[slot].name} {shares[slot] / total:.0%}" for slot in largest if shares[slot] > 0]
    return f"{text}; most of it for {', '.join(named)}" if named else text


def _shares(row: Row, assignment: Sequence[int]) -> dict[int, float]:
    """The amount each slot stands for; a product counts half for either."""
    shares: dict[int, float] = {}
    for slot, amounts in row.linear.items():
        shares[slot] = shares.get(slot, 0.0) + float(amounts[assignment[slot]])
    for a, b, amounts in row.products:
        for slot in (a, b):
            shares[slot] = shares.get(slot, 0.0) + float(amounts[assignment[a], assignment[b]]) / 2
    return shares


def _least_use(problem: Problem, row: Row, deadline_s: float) -> _Least:
    columns = Columns(problem, keep_all(problem), [row])
    form = columns.of_row(row)
    values, constraints = -form.coefficients, Constraints(columns)
    if columns.pairs:
        unit = float(form.coefficients.max()) or 1.0
        outcome = solve_integer(
            constraints,
            form.coefficients / unit,
            form.constant / unit,
            gap=0.0,
            time_limit_s=max(1.0, deadline_s - time.monotonic()),
        )
        if outcome.values is not None:
            values = outcome.values
    assignment = columns.assignment(values)
    return _Least(
        amount=row_use(row, assignment), assignment=assignment, has_choice=bool(np.any(form.coefficients > 0))
    )


def _conflict(problem: Problem, rows: list[Row], deadline_s: float) -> list[str]:
    """Rows that cannot be kept together, none of which can be left out (a deletion filter, Chinneck and Dravnieks 1991,
    doi:10.1287/ijoc.3.2.157); all rows still in doubt if time runs out."""
    columns = Columns(problem, keep_all(problem), rows)
    forms = {row.name: columns.of_row(row) for row in rows}
    left = list(rows)
    for row in rows:
        rest = [other for other in left if other is not row]
        constraints = Constraints(columns)
        for other in rest:
            form = forms[other.name]
            constraints.add_limit(form.coefficients, other.limit - form.constant)
        remaining = deadline_s - time.monotonic()
        if remaining <= 0:
            break
        outcome = solve_integer(constraints, np.zeros(columns.size), 0.0, gap=1.0, time_limit_s=remaining)
        if outcome.status == "infeasible":
            left = rest
    return [row.name for row in left]
