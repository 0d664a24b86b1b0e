"""The search of the best codes equals its twin bit for bit, and refuses what it cannot search."""

from __future__ import annotations

import numpy as np
import pytest

from detent.kernels.reference import code_search as twin
from detent.kernels.rounding import AffineColumns, round_columns, search_codes
from tests.fanout import assert_parity
from tests.rounding_problems import Problem, moments, problem

KINDS = [{"bits": 2}, {"groups": 3, "bits": 3}, {"codebook": True, "bits": 3}, {"codebook": True, "shared": True}]
SHAPES = [(1, 1), (9, 2), (7, 5), (3, 9), (0, 4), (4, 0)]


def check(p: Problem, linear: np.ndarray | None = None, most_values: int = 3000) -> None:
    codes = round_columns(p.weights, p.factor, p.grids)
    given = p.weights, p.hessian, codes, p.grids
    options = {"linear": linear, "most_values": most_values}
    assert_parity(lambda: search_codes(*given, **options), twin.search_codes(*given, **options))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_grids(shape: tuple[int, int], kind: dict) -> None:
    p = problem(*shape, **kind)
    check(p)
    check(p, np.random.default_rng(3).normal(size=shape))


@pytest.mark.parametrize("most_values", [0, 1, 5, 12, 100])
def test_limits(most_values: int) -> None:
    check(problem(6, 12, bits=3), most_values=most_values)


def test_the_most_columns() -> None:
    check(problem(2, 64, bits=2), most_values=500)


WEIGHTS = np.zeros((2, 3), np.float32)
CODES = np.zeros((2, 3), np.int32)
GRIDS = AffineColumns(scale=np.ones((1, 1), np.float32), zero_point=np.zeros((1, 1), np.int32), qmin=-2, qmax=1)


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (np.ones((3, 3)), "hessian must be positive definite, but column 1 depends on others"),
        (np.eye(3) - 1.5 * (np.eye(3, k=1) + np.eye(3, k=-1)), "positive definite"),
        (np.diag([1.0, 0.0, 1.0]), "diagonal of hessian must be positive"),
        (np.eye(3, dtype=np.float32), "hessian must have dtype float64"),
        (np.eye(2), "hessian must have shape"),
        (np.triu(np.ones((3, 3))), "hessian must be symmetric"),
        (np.full((3, 3), np.nan), "hessian.* must be finite"),
    ],
)
def test_matrices_that_do_not_fit(hessian: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_codes(WEIGHTS, hessian, CODES, GRIDS)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="at most 64 columns can be searched, got 65"):
        search_codes(np.zeros((1, 65), np.float32), moments(65), np.zeros((1, 65), np.int32), GRIDS)
    with pytest.raises(ValueError, match=r"codes\[0, 0\] must be in \[-2, 1\], got 2"):
        search_codes(WEIGHTS, np.eye(3), np.full((2, 3), 2, np.int32), GRIDS)
    with pytest.raises(ValueError, match="codes must have dtype int32"):
        search_codes(WEIGHTS, np.eye(3), np.zeros((2, 3), np.int64), GRIDS)
    with pytest.raises(ValueError, match="weights must have dtype float32"):
        search_codes(np.zeros((2, 3)), np.eye(3), CODES, GRIDS)
    with pytest.raises(ValueError, match="most_values must not be negative, got -1"):
        search_codes(WEIGHTS, np.eye(3), CODES, GRIDS, most_values=-1)
    with pytest.raises(ValueError, match="linear must have shape"):
        search_codes(WEIGHTS, np.eye(3), CODES, GRIDS, linear=np.zeros((1, 3)))
    with pytest.raises(TypeError, match="codes must be a NumPy array"):
        search_codes(WEIGHTS, np.eye(3), [[0]], GRIDS)  # type: ignore[arg-type]
