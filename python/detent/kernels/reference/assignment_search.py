"""Twin of `detent.kernels.assignment_search`: the same assignments and the same bits of their errors.

The twin of branch and bound tries every assignment, so it counts no nodes.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt

from detent.kernels.assignment_search import AssignmentProblem, AssignmentSearch

__all__ = ["search_band", "search_nearby", "search_tree"]

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Move = tuple[float, tuple[int, ...]]

LANES = 8
TENURE = 12


class _Pool:
    """The best assignments offered, distinct, best first; of equals the first."""

    def __init__(self, wanted: int, slots: int) -> None:
        self.wanted, self.slots = wanted, slots
        self.entries: list[tuple[float, list[int]]] = []

    def offer(self, assignment: list[int], error: float) -> None:
        if error < self.worst() and all(assignment != known for _, known in self.entries):
            self.entries = sorted([*self.entries, (error, list(assignment))], key=lambda entry: entry[0])[: self.wanted]

    def worst(self) -> float:
        return math.inf if len(self.entries) < self.wanted else self.entries[-1][0]

    def result(self, nodes: int, complete: bool) -> AssignmentSearch:
        assignments = np.array([assignment for _, assignment in self.entries], np.int64).reshape(-1, self.slots)
        errors = np.array([error for error, _ in self.entries], np.float64)
        return AssignmentSearch(assignments=assignments, errors=errors, nodes=nodes, complete=complete)


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
    """Twin of `kernels.assignment_search.search_band`."""
    spans = list(itertools.pairwise(problem.first.tolist()))
    assignment = [begin + int(np.argmin(reduced[begin:end])) for begin, end in spans]
    allowed = [
        sorted((c for c in range(*span) if c != base and bound + reduced[c] <= upper), key=lambda c: float(reduced[c]))
        for span, base in zip(spans, assignment, strict=True)
    ]
    slots = sorted((s for s in range(len(spans)) if allowed[s]), key=lambda s: float(reduced[allowed[s][0]]))
    savings = [np.zeros(len(problem.limits))]
    for s in reversed(slots):
        steps = problem.amounts[:, [assignment[s]]] - problem.amounts[:, allowed[s]]
        savings.insert(0, savings[0] + np.maximum(steps.max(axis=1), 0.0))
    pool, nodes = _Pool(wanted, len(spans)), 0

    def promising(total: float) -> bool:
        return bound + total <= upper and bound + total < pool.worst() * (1.0 - gap)

    def visit(place: int, total: float, error: float, use: Doubles) -> None:
        nonlocal nodes
        nodes += 1
        if nodes > most_nodes or np.any(use - savings[place] > problem.limits):
            return
        if np.all(use <= problem.limits):
            pool.offer(assignment, error)
        for following in range(place, len(slots)):
            s = slots[following]
            if not promising(total + reduced[allowed[s][0]]):
                return
            now = assignment[s]
            for c in allowed[s]:
                if not promising(total + reduced[c]):
                    break
                assignment[s] = c
                then = use + (problem.amounts[:, c] - problem.amounts[:, now])
                visit(following + 1, total + reduced[c], error + (problem.costs[c] - problem.costs[now]), then)
            assignment[s] = now
            if nodes > most_nodes:
                return

    use, error = np.zeros(len(problem.limits)), 0.0
    for c in assignment:
        use, error = use + problem.amounts[:, c], error + float(problem.costs[c])
    visit(0, 0.0, error, use)
    return pool.result(nodes, nodes <= most_nodes)


class _Nearby:
    """What follows from an assignment: its error, and what each step to another candidate changes."""

    def __init__(self, problem: AssignmentProblem) -> None:
        self.problem = problem
        self.count = int(problem.first[-1])
        self.slot = np.repeat(np.arange(len(problem.first) - 1), np.diff(problem.first))
        self.products = []
        offset = 0
        for row, a, b in problem.product.tolist():
            shape = [int(problem.first[s + 1] - problem.first[s]) for s in (a, b)]
            size = shape[0] * shape[1]
            self.products.append((row, a, b, problem.product_amounts[offset : offset + size].reshape(shape)))
            offset += size

    def update(self, assignment: Indices) -> None:
        """Errors, probe by probe, and amounts."""
        problem = self.problem
        self.assignment, self.current = assignment, assignment[self.slot]
        toward, square, self.error = np.zeros(self.count), np.zeros(self.count), 0.0
        padded = -(-len(problem.factors) // LANES) * LANES
        self.steps = np.zeros((self.count, padded))
        for k, factors in enumerate(problem.factors):
            total = _sum(factors[assignment])
            self.error += total * total
            step = factors - factors[self.current]
            self.steps[:, k] = step
            toward = toward + total * step
            square = square + step * step
        for cost in problem.costs[assignment].tolist():
            self.error += cost
        self.length = np.sqrt(square)
        self.change = (2.0 * toward + square) + (problem.costs - problem.costs[self.current])
        self.use = np.array([_sum(amounts[assignment]) for amounts in problem.amounts])
        self.amounts = problem.amounts - problem.amounts[:, self.current]
        for row, a, b, amounts in self.products:
            i, j = (int(assignment[s] - problem.first[s]) for s in (a, b))
            self.use[row] += amounts[i, j]
            for s, line in ((a, amounts[:, j]), (b, amounts[i])):
                self.amounts[row, problem.first[s] : problem.first[s + 1]] += line - amounts[i, j]

    def fits(self, *move: int) -> bool:
        more = self.amounts[:, move[0]]
        if len(move) == 2:
            more = more + (self.amounts[:, move[1]] + self.mixed(*move))
        return bool(np.all((self.use + more <= self.problem.limits) | (more <= 0.0)))

    def mixed(self, x: int, y: int) -> Doubles:
        """What rows use beyond the sum of both changes, because of products of the two slots."""
        more, first = np.zeros(len(self.problem.limits)), self.problem.first
        for c, d in ((x, y), (y, x)):
            for row, a, b, amounts in self.products:
                if (a, b) == (self.slot[c], self.slot[d]):
                    i, j, p, q = c - first[a], d - first[b], self.current[c] - first[a], self.current[d] - first[b]
                    more[row] += (amounts[i, j] - amounts[i, q]) - (amounts[p, j] - amounts[p, q])
        return more

    def interaction(self, a: int, b: int) -> float:
        """Lanes of products, added in pairs."""
        lanes = np.zeros(LANES)
        for block in (self.steps[a] * self.steps[b]).reshape(-1, LANES):
            lanes = lanes + block
        while len(lanes) > 1:
            lanes = lanes[::2] + lanes[1::2]
        return float(lanes[0])


def search_nearby(problem: AssignmentProblem, *, start: Indices, steps: int, wanted: int = 1) -> AssignmentSearch:
    """Twin of `kernels.assignment_search.search_nearby`."""
    state = _Nearby(problem)
    state.update(start.copy())
    pool = _Pool(wanted, len(start))
    pool.offer(state.assignment.tolist(), state.error)
    best, forbidden, nodes = state.error, np.zeros(state.count, np.int64), 0
    while nodes < steps:
        move = _best_move(state, forbidden, nodes, best)
        if not move:
            break
        assignment = state.assignment.copy()
        for c in move:
            s = state.slot[c]
            forbidden[assignment[s]] = nodes + 1 + TENURE + s % 7
            assignment[s] = c
        state.update(assignment)
        nodes += 1
        pool.offer(assignment.tolist(), state.error)
        best = min(best, state.error)
    return pool.result(nodes, False)


def _best_move(state: _Nearby, forbidden: Indices, step: int, best: float) -> tuple[int, ...]:
    """One step or two, whichever changes the error for the better most."""

    def allowed(change: float, *move: int) -> bool:
        if all(forbidden[c] <= step for c in move):
            return True
        return bool(state.error + change < best - 1e-12 * abs(best))

    found: Move = (math.inf, ())
    others = [c for c in range(state.count) if c != state.current[c]]
    for c in others:
        if state.change[c] < found[0] and allowed(state.change[c], c) and state.fits(c):
            found = (float(state.change[c]), (c,))
    for a, b in itertools.combinations(others, 2):
        change = state.change[a] + state.change[b]
        if change - (2.0 * state.length[a]) * state.length[b] < found[0] and state.slot[a] != state.slot[b]:
            both = change + 2.0 * state.interaction(a, b)
            if both < found[0] and allowed(both, a, b) and state.fits(a, b):
                found = (float(both), (a, b))
    return found[1]


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
    """Every assignment in turn; equals `kernels.assignment_search.search_tree` if that is complete and gap is 0."""
    del multipliers, gap, most_nodes
    state, found = _Nearby(problem), []
    spans = [range(problem.first[s], problem.first[s + 1]) for s in order.tolist()]
    for chosen in itertools.product(*spans):
        assignment = np.zeros(len(order), np.int64)
        assignment[order] = chosen
        state.update(assignment)
        total, error = np.zeros(len(problem.factors)), 0.0
        for c in chosen:
            total, error = total + problem.factors[:, c], error + float(problem.costs[c])
        for value in total.tolist():
            error += value * value
        if np.all(state.use <= problem.limits) and error < upper:
            found.append((error, assignment.tolist()))
    pool = _Pool(wanted, len(order))
    for error, choice in sorted(found):
        pool.offer(choice, error)
    return pool.result(len(found), True)


def _sum(values: Doubles) -> float:
    """First to last."""
    total = 0.0
    for value in values.tolist():
        total += value
    return total
