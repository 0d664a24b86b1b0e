"""Time of the solver of mixed precision: 50, 200 and 1000 layers, six widths, three limits.

    python benchmarks/mixed_precision_solver.py [--no-write]

Costs fall by about four with each bit, as errors of rounding do, over layers whose sensitivities differ by orders of
magnitude; bytes, operations and activations are limited to nine tenths of those of the average width. The additive
problem must be solved to a gap of 1e-4, within a second for 200 layers and ten for 1000. With interactions the row
says how much of the additive solution's joint error is left, and the proved gap. Rows go to
`benchmarks/results/mixed_precision_solver.json`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np

from detent.mixed_precision import Problem, Row, Slot, Solution, solve
from detent.mixed_precision.amounts import additive_error, is_feasible, joint_error
from harness import Row as Figure
from harness import limit, print_rows, write_section

TITLE = "Mixed precision: six widths per layer, three limits"
WIDTHS = np.array([2, 3, 4, 5, 6, 8])
PROBES = 64
GOALS_MS = {50: 1000.0, 200: 1000.0, 1000: 10_000.0}
SEEDS = range(3)


def make_problem(layers: int, seed: int) -> Problem:
    """A problem whose figures look like those of a network."""
    random = np.random.default_rng(seed)
    scales = np.sqrt(random.lognormal(0, 1.5, layers))[:, None, None] * 2.0 ** -WIDTHS[:, None]
    common = random.normal(size=(layers, 1, 1)) * random.normal(size=PROBES)
    factors = scales * (0.5 * common + random.normal(size=(layers, len(WIDTHS), PROBES)))
    rows = []
    for name, most in (("weight bytes", 10**6), ("operations", 10**7), ("activations", 10**5)):
        amounts = random.integers(1000, most, layers)
        rows.append(
            Row(
                name=name,
                linear={layer: amount * WIDTHS for layer, amount in enumerate(amounts)},
                limit=float(amounts.sum() * WIDTHS.mean() * 0.9),
            )
        )
    return Problem(
        slots=tuple(Slot(name=f"layer{layer}", widths=tuple(WIDTHS.tolist())) for layer in range(layers)),
        costs=tuple((factor**2).mean(axis=1) for factor in factors),
        rows=tuple(rows),
        factors=tuple(factors),
    )


def verify() -> None:
    """On a few layers, the solver finds what trying every assignment finds."""
    for seed in SEEDS:
        problem = make_problem(5, seed)
        feasible = [a for a in itertools.product(range(len(WIDTHS)), repeat=5) if is_feasible(problem, a)]
        for interactions, error in ((False, additive_error), (True, joint_error)):
            (found,) = solve(problem, interactions=interactions, gap=0.0)
            least = min(error(problem, assignment) for assignment in feasible)
            assert np.isclose(found.objective, least, rtol=1e-9, atol=0)


def measure() -> list[Figure]:
    """Median times over problems."""
    rows = []
    for layers, goal in GOALS_MS.items():
        problems = [make_problem(layers, seed) for seed in SEEDS]
        additive, seconds = _timed(problems, solve)
        gap = max(found.gap for found in additive)
        assert gap <= 1e-4 + 1e-9
        rows.append(limit(f"additive, {layers} layers", seconds, at_most_ms=goal, note=f"gap at most {gap:.1e}"))
        joint, seconds = _timed(problems[:1], lambda problem: solve(problem, interactions=True))
        before = joint_error(problems[0], additive[0].assignment)
        note = f"{joint[0].objective / before:.1%} of the additive solution's joint error, gap {joint[0].gap:.2g}"
        rows.append(limit(f"with interactions, {layers} layers", seconds, note=note))
    return rows


def _timed(problems: list[Problem], call: Callable[[Problem], list[Solution]]) -> tuple[list[Solution], float]:
    found, times = [], []
    for problem in problems:
        start = time.perf_counter()
        found.append(call(problem)[0])
        times.append(time.perf_counter() - start)
    return found, statistics.median(times)


def main() -> None:
    """Verify, time, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    verify()
    rows = measure()
    print_rows(TITLE, rows)
    if not options.no_write:
        write_section("mixed_precision_solver", "solver", rows)


if __name__ == "__main__":
    main()
