"""Searches for assignments equal their NumPy twins bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detent.kernels import assignment_search as kernel
from detent.kernels.assignment_search import AssignmentProblem, AssignmentSearch
from detent.kernels.reference import assignment_search as twin
from tests.fanout import assert_parity

COUNTS = [(1,), (3,), (2, 1, 4), (3, 3, 3, 3, 3), (2, 5, 1, 3, 4, 2, 3)]


def problem_of(
    counts: tuple[int, ...], *, probes: int = 7, rows: int = 2, products: bool = True, seed: int = 0
) -> AssignmentProblem:
    """Whole amounts, and limits a little above what the first candidates use."""
    random = np.random.default_rng(seed)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    size, slots = int(first[-1]), len(counts)
    amounts = random.integers(0, 100, (rows, size)).astype(np.float64)
    triples, parts = [], [np.zeros(0)]
    if products and rows and slots > 1:
        for a, b in ((0, slots - 1), (slots // 2, 0), (slots - 1, 0)):
            if a != b:
                triples.append((int(random.integers(rows)), a, b))
                parts.append(random.integers(0, 50, counts[a] * counts[b]).astype(np.float64))
    use = amounts[:, first[:-1]].sum(axis=1)
    for (row, _, _), part in zip(triples, parts[1:], strict=True):
        use[row] += part[0]
    return AssignmentProblem(
        first=first,
        factors=random.normal(size=(probes, size)) * random.lognormal(size=size),
        costs=random.random(size),
        amounts=amounts,
        limits=use + 10.0,
        product=np.array(triples, np.int64).reshape(-1, 3),
        product_amounts=np.concatenate(parts),
    )


def arrays(found: AssignmentSearch, nodes: bool = True) -> tuple[Any, ...]:
    counted = (np.array([found.nodes]), np.array([found.complete])) if nodes else ()
    return found.assignments, found.errors, *counted


@pytest.mark.parametrize("wanted", [1, 4])
@pytest.mark.parametrize("probes", [0, 1, 8, 19])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_nearby_equals_its_twin(counts: tuple[int, ...], probes: int, wanted: int) -> None:
    for seed, products in ((0, False), (1, True)):
        problem = problem_of(counts, probes=probes, products=products, seed=seed)
        options = {"start": problem.first[:-1].copy(), "steps": 25, "wanted": wanted}
        wanted_ = arrays(twin.search_nearby(problem, **options))
        assert_parity(lambda p=problem, o=options: arrays(kernel.search_nearby(p, **o)), wanted_)


@pytest.mark.parametrize("wanted", [1, 5])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_tree_equals_every_assignment_tried(counts: tuple[int, ...], wanted: int) -> None:
    for seed, rows, probes in ((0, 0, 5), (1, 2, 5), (2, 2, 0), (3, 1, 17)):
        problem = problem_of(counts, probes=probes, rows=rows, seed=seed)
        random = np.random.default_rng(seed)
        options = {
            "order": random.permutation(len(counts)),
            "multipliers": random.random(rows) * 0.01,
            "upper": np.inf,
            "most_nodes": 10**6,
            "wanted": wanted,
        }
        expected = arrays(twin.search_tree(problem, **options), nodes=False)
        assert_parity(lambda p=problem, o=options: arrays(kernel.search_tree(p, **o), nodes=False), expected)
        assert kernel.search_tree(problem, **options).complete


@pytest.mark.parametrize("gap", [0.0, 0.1])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_band_equals_its_twin(counts: tuple[int, ...], gap: float) -> None:
    for seed, most, width in ((0, 10**6, np.inf), (1, 10**6, 0.8), (2, 20, np.inf)):
        problem = problem_of(counts, products=False, seed=seed)
        least = np.minimum.reduceat(problem.costs, problem.first[:-1])
        options = {
            "reduced": problem.costs - np.repeat(least, counts),
            "bound": float(least.sum()),
            "upper": float(least.sum()) + width,
            "gap": gap,
            "most_nodes": most,
            "wanted": 3,
        }
        expected = arrays(twin.search_band(problem, **options))
        assert_parity(lambda p=problem, o=options: arrays(kernel.search_band(p, **o)), expected)


def test_a_search_that_is_cut_short_says_so() -> None:
    problem = problem_of((3,) * 6, products=False)
    order, multipliers = np.arange(6), np.zeros(2)
    found = kernel.search_tree(problem, order=order, multipliers=multipliers, upper=np.inf, most_nodes=4)
    assert not found.complete
    found = kernel.search_tree(problem, order=order, multipliers=multipliers, upper=-1.0, most_nodes=10**6)
    assert found.complete
    assert len(found.errors) == 0


GOOD: dict[str, Any] = {"order": np.arange(3), "multipliers": np.zeros(2), "upper": np.inf, "most_nodes": 9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": np.array([0, 2, 2, 7])}, "slot 1 has no candidates"),
        ({"first": np.array([1, 2, 3, 7])}, "begin with 0"),
        ({"first": np.array([0, 2, 3, 7], np.int32)}, "first must have dtype int64"),
        ({"factors": np.zeros((4, 6))}, r"factors .* \[4, 7\]"),
        ({"factors": np.full((4, 7), np.nan)}, "factors hold NaN"),
        ({"costs": np.zeros(7, np.float32)}, "costs must have dtype float64"),
        ({"costs": np.full(7, np.inf)}, "costs hold NaN or infinity"),
        ({"amounts": np.zeros((7, 2)).T}, "amounts must be in C order"),
        ({"limits": np.full(2, np.nan)}, "limits hold NaN"),
        ({"product": np.array([[0, 1, 1]])}, "one slot twice"),
        ({"product": np.array([[2, 0, 1]])}, "row or slot that does not exist"),
        ({"product_amounts": np.zeros(3)}, "product_amounts"),
        ({"order": np.array([0, 1, 1])}, "every slot once"),
        ({"multipliers": np.array([0.0, -1.0])}, "at least 0"),
        ({"wanted": 0}, "wanted at least 1"),
        ({"gap": np.nan}, "gap must be finite"),
    ],
    ids=str,
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    problem = problem_of((2, 1, 4))
    fields = {name: getattr(problem, name) for name in AssignmentProblem.__dataclass_fields__}
    given = {**fields, **GOOD, **change}
    changed = AssignmentProblem(**{name: given.pop(name) for name in fields})
    with pytest.raises(ValueError, match=message):
        kernel.search_tree(changed, **given)


def test_a_start_must_be_an_assignment() -> None:
    problem = problem_of((2, 1, 4))
    for start, message in ((np.array([0, 2]), "3 elements"), (np.array([0, 2, 2]), "candidate 2, which slot 2")):
        with pytest.raises(ValueError, match=message):
            kernel.search_nearby(problem, start=start, steps=1)
