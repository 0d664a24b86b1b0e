"""Time of the solver of mixed precision, and of the order of execution that needs the least memory.

    python benchmarks/mixed_precision_solver.py [--data FOLDER] [--no-write]

50, 200 and 1000 layers, six widths, three limits.

Costs fall by about four with each bit, as errors of rounding do, over layers whose sensitivities differ by orders of
magnitude; bytes, operations and activations are limited to nine tenths of those of the average width. The additive
problem must be solved to a gap of 1e-4, within a second for 200 layers and ten for 1000. With interactions the row
says how much of the additive solution's joint error is left, and the proved gap.

The best order of execution, with its largest cut, must be found and proved within a second for ResNet-56 and
MobileNetV2, if the data folder is there, and for a transformer of 12 layers; their weights are random, which matters
to no cut. Rows go to `benchmarks/results/mixed_precision_solver.json`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import detent
from detent.graph.policy import place_as_asked
from detent.mixed_precision import Problem, Row, Slot, Solution, resource_model, solve
from detent.mixed_precision.amounts import additive_error, is_feasible, joint_error
from detent.mixed_precision.max_cut import cuts
from detent.mixed_precision.orders import best_order
from harness import Row as Figure
from harness import limit, print_rows, write_section
from networks import DEFAULT, add_data_option, load_zoo

TITLE = "Mixed precision: six widths per layer, three limits"
CUT_TITLE = "Least activation memory over all orders of execution"
CUT_GOAL_MS = 1000.0
TARGET = "imx500"
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
    """On six layers, the solver finds what trying every assignment finds."""
    for seed in SEEDS:
        problem = make_problem(6, seed)
        feasible = [a for a in itertools.product(range(len(WIDTHS)), repeat=6) if is_feasible(problem, a)]
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


class Attention(nn.Module):
    """One layer of a transformer, its attention written as matrix products."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens, width]` to the same."""
        y = self.norm1(x)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        chances = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((chances @ v).transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))


def networks(data: Path) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Networks by name, with an example; the zoo's are left out if the folder is not there."""
    torch.manual_seed(0)
    images = torch.zeros(2, 3, 32, 32)
    found: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    if data.is_dir():
        zoo = load_zoo(data)
        found = {name: (zoo.NETWORKS[name](), images) for name in ("resnet56", "mobilenetv2")}
    elif data != DEFAULT:
        raise SystemExit(f"there is no folder {data}")
    found["transformer, 12 layers"] = nn.Sequential(*(Attention(192, 3) for _ in range(12))), torch.zeros(2, 64, 192)
    return found


def measure_orders(data: Path) -> list[Figure]:
    """Median times of the best order, its cuts in the time too, once for all networks."""
    rows = []
    for name, (module, example) in networks(data).items():
        graph, chip = detent.capture(module.eval(), example), detent.load_target(TARGET)
        network = resource_model(graph, place_as_asked(graph, chip), chip).network
        times = []
        for _ in SEEDS:
            start = time.perf_counter()
            found = best_order(network)
            peak = max(cut.bytes(dict.fromkeys(cut.elements, 8)) for cut in cuts(network, found.order))
            times.append(time.perf_counter() - start)
        captured = max(cut.bytes(dict.fromkeys(cut.elements, 8)) for cut in cuts(network))
        if not found.exact or peak != found.peak_bytes or peak > captured:
            raise SystemExit(
                f"{name}: {found.peak_bytes} bytes, {peak} by its cuts, at least {found.lower_bound_bytes}"
            )
        note = f"{len(network.steps)} steps, {peak / captured:.1%} of the captured order's {captured:.0f} bytes, proved"
        rows.append(limit(f"best order, {name}", statistics.median(times), at_most_ms=CUT_GOAL_MS, note=note))
    return rows


def main() -> None:
    """Verify, time, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    verify()
    for title, section, rows in (
        (CUT_TITLE, "orders", measure_orders(options.data)),
        (TITLE, "solver", measure()),
    ):
        print_rows(title, rows)
        if not options.no_write:
            write_section("mixed_precision_solver", section, rows)


if __name__ == "__main__":
    main()
