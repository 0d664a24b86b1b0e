"""A bound for the joint error: the least over mixtures of candidates, by Frank and Wolfe with corrections.

`|F x|^2 / K` is convex in the columns x. With z = F x at any mixture x, and l the least of `z . F y` over all mixtures
y within the limits (a linear program), every mixture has `|F y|^2 >= l^2 / |z|^2` if l is positive (Cauchy and
Schwarz), so every assignment has. The mixture is corrected after each program: the point nearest to zero in the hull of
all the vertices met (Frank and Wolfe 1956, doi:10.1002/nav.3800030109; Holloway 1974, Mathematical Programming 6).

The bound is as good as the relaxation. Where slots have more candidates together than there are probes, mixtures cancel
nearly all of the error, and the bound is near zero: then it says little.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detent.mixed_precision.columns import Columns
from detent.mixed_precision.problem import Problem
from detent.mixed_precision.programs import Constraints, Relaxation

__all__ = ["Mixture", "find_mixture", "stack_factors"]

Array = npt.NDArray[np.float64]

_PROGRAMS: Final = 100
_CORRECTIONS: Final = 200
_CLOSE: Final = 1e-3
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """The mixture of candidates with about the least joint error.

    Args:
        values: of the columns.
        reach: float64 `[K]`, the factors it adds up to, divided by `sqrt(K)`.
        bound: of the joint error of all assignments within the limits.
        multipliers: of the limits, where the bound was proved; zeros if it is zero.
    """

    values: Array
    reach: Array
    bound: float
    multipliers: Array


def stack_factors(problem: Problem, kept: Sequence[Sequence[int]]) -> Array:
    """Factors of the candidates in play, float64 `[K, candidates]`, divided by `sqrt(K)`: squares are joint errors."""
    assert problem.factors is not None
    rows = np.concatenate([factors[list(kept[slot])] for slot, factors in enumerate(problem.factors)])
    return np.ascontiguousarray(rows.T / np.sqrt(rows.shape[1]))


def find_mixture(
    factors: Array,
    constant: Array,
    columns: Columns,
    constraints: Constraints,
    limits: int,
    start: Array,
    *,
    deadline_s: float,
) -> Mixture:
    """The least joint error over mixtures, with a proof from below.

    Args:
        factors: `[K, candidate columns]`, of slots with a choice.
        constant: `[K]`, of slots without.
        columns: of the program.
        constraints: what columns satisfy, with `limits` limits.
        limits: how many limits there are.
        start: the columns to begin with.
        deadline_s: when to stop, on the monotonic clock.
    """
    program = Relaxation(constraints)
    vertices = [start]
    reaches = [constant + factors @ start[: columns.candidates]]
    weights = np.ones(1)
    bound, multipliers = 0.0, np.zeros(limits)
    costs = np.zeros(columns.size)
    for _ in range(_PROGRAMS):
        reach = weights @ np.array(reaches)
        value = float(reach @ reach)
        if value <= _CLOSE**2 * float(reaches[0] @ reaches[0]) or time.monotonic() > deadline_s:
            break  # mixtures cancel all there is
        costs[: columns.candidates] = reach @ factors
        relaxed = program.solve(costs, deadline_s - time.monotonic())
        if relaxed is None:
            break
        least = relaxed.bound + float(reach @ constant)
        least -= _ROUNDING * (abs(least) + value)
        if least > 0 and least * least / value > bound:
            bound = least * least / value
            duals = [-2 * constraints.dual_of_limit(relaxed.duals, i) for i in range(limits)]
            multipliers = np.maximum(np.array(duals), 0.0)
        if value - bound <= _CLOSE * value:
            break
        vertices.append(relaxed.values)
        reaches.append(constant + factors @ relaxed.values[: columns.candidates])
        weights = _nearest(np.array(reaches), np.append(weights, 0.0))
    mixture = weights @ np.array(vertices)
    return Mixture(values=mixture, reach=weights @ np.array(reaches), bound=bound, multipliers=multipliers)


def _nearest(points: Array, weights: Array) -> Array:
    """Weights of the point of a hull that is nearest to zero, by moves from the worst point to the best."""
    gram = points @ points.T
    weights = weights.copy()
    for _ in range(_CORRECTIONS):
        slopes = gram @ weights
        best = int(np.argmin(slopes))
        worst = int(np.argmax(np.where(weights > 0, slopes, -np.inf)))
        gain = float(slopes[worst] - slopes[best])
        if gain <= _ROUNDING * float(weights @ slopes):
            break
        length = float(gram[best, best] + gram[worst, worst] - 2 * gram[best, worst])
        share = min(float(weights[worst]), gain / length) if length > 0 else float(weights[worst])
        weights[best] += share
        weights[worst] -= share
    total: Array = weights / weights.sum()
    return total
