"""Searches for assignments: one candidate for each slot, a small error, and no row above its limit.

The error of an assignment is `|sum_s factors[s][a_s]|^2 + sum_s costs[s][a_s]`. Candidates are counted over all slots,
one slot after another; `first[s]` is the first of slot s. csrc/search/assignment_search.h says how each search works.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detent import _core

__all__ = ["AssignmentProblem", "AssignmentSearch", "search_band", "search_nearby", "search_tree"]

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class AssignmentProblem:
    """What is assigned, in arrays.

    Args:
        first: int64 `[slots + 1]`, the first candidate of each slot, and the number of all candidates.
        factors: float64 `[probes, candidates]`.
        costs: float64 `[candidates]`.
        amounts: float64 `[rows, candidates]`.
        limits: float64 `[rows]`, infinity for none.
        product: int64 `[products, 3]`: a row and two slots.
        product_amounts: float64, `[n_a, n_b]` of each product, one after another.
    """

    first: Indices
    factors: Doubles
    costs: Doubles
    amounts: Doubles
    limits: Doubles
    product: Indices
    product_amounts: Doubles


@dataclass(frozen=True, kw_only=True, eq=False)
class AssignmentSearch:
    """The best assignments seen, distinct, best first.

    Args:
        assignments: int64 `[found, slots]`, candidates counted over all slots.
        errors: float64 `[found]`.
        nodes: how many were looked at.
        complete: the search went to its end.
    """

    assignments: Indices
    errors: Doubles
    nodes: int
    complete: bool


def search_band(
    problem: AssignmentProblem,
    *,
    reduced: Doubles,
    bound: float,
    upper: float,
    gap: float = 0.0,
    most_nodes: int,
    wanted: int = 1,
) -> AssignmentSearch:
    """All assignments whose reduced costs add up to little: the end of a proof that begins with multipliers.

    Args:
        problem: without factors and products.
        reduced: float64 `[candidates]`, not negative, 0 for one candidate of each slot. The costs of an assignment
            within the limits are at least `bound` plus its reduced costs.
        bound: the Lagrangian bound.
        upper: only assignments for which `bound` plus reduced costs is at most this.
        gap: with as many as wanted, only those below the worst of them times `1 - gap`.
        most_nodes: when to stop; the search is not complete then.
        wanted: how many to keep.

    Raises:
        ValueError: a wrong dtype, shape or layout, NaN or infinity.
    """
    given = problem.first, problem.costs, problem.amounts, problem.limits
    return _found(_core.search_band(*given, reduced, bound, upper, gap, most_nodes, wanted))


def search_nearby(problem: AssignmentProblem, *, start: Indices, steps: int, wanted: int = 1) -> AssignmentSearch:
    """Tabu search: the best change of one or two slots, `steps` times; what was left is forbidden for a while.

    Args:
        problem: what is assigned.
        start: int64 `[slots]`, within the limits; it is among the assignments seen.
        steps: how many moves.
        wanted: how many to keep.

    Raises:
        ValueError: a wrong dtype, shape or layout, NaN or infinity.
    """
    return _found(_core.search_nearby(*_arrays(problem), start, steps, wanted))


def search_tree(
    problem: AssignmentProblem,
    *,
    order: Indices,
    multipliers: Doubles,
    upper: float,
    gap: float = 0.0,
    most_nodes: int,
    wanted: int = 1,
) -> AssignmentSearch:
    """Branch and bound with the convex relaxation at each node.

    Args:
        problem: what is assigned.
        order: int64 `[slots]`, the slot that is decided first, second and so on.
        multipliers: float64 `[rows]`, not negative: of rows in the bound.
        upper: only assignments with errors below this.
        gap: with as many as wanted, only those below the worst of them times `1 - gap`.
        most_nodes: when to stop; the search is not complete then.
        wanted: how many to keep.

    Raises:
        ValueError: a wrong dtype, shape or layout, NaN or infinity.
    """
    return _found(_core.search_tree(*_arrays(problem), order, multipliers, upper, gap, most_nodes, wanted))


def _arrays(problem: AssignmentProblem) -> tuple[Indices, Doubles, Doubles, Doubles, Doubles, Indices, Doubles]:
    return (
        problem.first,
        problem.factors,
        problem.costs,
        problem.amounts,
        problem.limits,
        problem.product,
        problem.product_amounts,
    )


def _found(result: tuple[Indices, Doubles, int, bool]) -> AssignmentSearch:
    assignments, errors, nodes, complete = result
    return AssignmentSearch(assignments=assignments, errors=errors, nodes=nodes, complete=complete)
