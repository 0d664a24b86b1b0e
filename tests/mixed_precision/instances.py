"""Small problems that brute force can solve, and large ones that look like networks."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from detent.mixed_precision import Problem, Row, Slot
from detent.mixed_precision.amounts import additive_error, is_feasible, joint_error

WIDTHS = (2, 3, 4, 5, 6, 8)


def brute_force(problem: Problem, interactions: bool = False) -> list[tuple[float, tuple[int, ...]]]:
    """Every assignment within the limits with its error, best first."""
    error = joint_error if interactions else additive_error
    every = itertools.product(*map(problem.choices, range(len(problem.slots))))
    return sorted((error(problem, a), a) for a in every if is_feasible(problem, a))


@st.composite
def problems(draw: st.DrawFn, *, whole: bool = False, joint: bool = False) -> Problem:
    """Up to six slots, four candidates, three rows with products, some slots fixed."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    slots = tuple(Slot(name=f"slot{s}", widths=WIDTHS[:count]) for s, count in enumerate(counts))

    def amounts(*shape: int) -> np.ndarray:
        drawn = random.integers(0, 30, shape).astype(np.float64)
        return drawn if whole else drawn * random.random(shape)

    rows = []
    for r in range(draw(st.integers(0, 3))):
        linear = {s: amounts(count) for s, count in enumerate(counts) if random.random() < 0.7}
        products = ()
        if len(counts) > 1 and draw(st.booleans()):
            pairs = [tuple(random.choice(len(counts), 2, replace=False)) for _ in range(draw(st.integers(1, 4)))]
            products = tuple((int(a), int(b), amounts(counts[a], counts[b])) for a, b in pairs)
        most = sum(float(line.max()) for line in linear.values()) + sum(float(p[2].max()) for p in products)
        limit = most * draw(st.floats(0.2, 1.0))
        rows.append(Row(name=f"row{r}", linear=linear, products=products, constant=float(amounts(1)[0]), limit=limit))
    fixed = {s: int(random.integers(count)) for s, count in enumerate(counts) if random.random() < 0.15}
    factors = tuple(random.normal(size=(count, 5)) * 4.0 ** -np.arange(count)[:, None] for count in counts)
    costs = tuple(random.integers(0, 20, count).astype(float) if whole else random.random(count) for count in counts)
    if joint:
        costs = tuple((factor**2).mean(axis=1) for factor in factors)
    return Problem(slots=slots, costs=costs, rows=tuple(rows), factors=factors, fixed=fixed)


def network(layers: int, *, seed: int = 0, probes: int = 32, share: float = 0.9, products: bool = False) -> Problem:
    """Six widths per layer; bytes, operations and activations limited to a share of those of the average width."""
    random = np.random.default_rng(seed)
    widths = np.array(WIDTHS)
    scales = np.sqrt(random.lognormal(0, 1.5, layers))[:, None, None] * 2.0 ** -widths[:, None]
    common = random.normal(size=(layers, 1, 1)) * random.normal(size=probes)
    factors = scales * (0.5 * common + random.normal(size=(layers, len(widths), probes)))
    rows = []
    for name, most in (("weight bytes", 10**6), ("operations", 10**7), ("activations", 10**5)):
        amounts = random.integers(1000, most, layers)
        limit = float(amounts.sum() * widths.mean() * share)
        rows.append(Row(name=name, linear={s: a * widths for s, a in enumerate(amounts)}, limit=limit))
    if products:
        macs = random.integers(10**3, 10**7, layers - 1)
        pairs = tuple((s, s + 1, m * np.outer(widths, widths)) for s, m in enumerate(macs))
        limit = float(macs.sum() * widths.mean() ** 2 * share)
        rows.append(Row(name="bit-operations", products=pairs, limit=limit))
    return Problem(
        slots=tuple(Slot(name=f"layer{s}", widths=WIDTHS) for s in range(layers)),
        costs=tuple((factor**2).mean(axis=1) for factor in factors),
        rows=tuple(rows),
        factors=tuple(factors),
    )
