"""The kernels that round weights together refuse what does not fit, and say what it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from detent.kernels.rounding import AffineColumns, CodebookColumns, descend, round_columns

WEIGHTS = np.zeros((2, 3), np.float32)
EYE = np.eye(3)
CODES = np.zeros((2, 3), np.int32)


def affine(**change: Any) -> AffineColumns:
    given: dict[str, Any] = {
        "scale": np.ones((2, 1), np.float32),
        "zero_point": np.zeros((2, 1), np.int32),
        "qmin": -8,
        "qmax": 7,
    }
    return AffineColumns(**(given | change))


def codebook(**change: Any) -> CodebookColumns:
    given: dict[str, Any] = {"scale": np.ones((1, 1), np.float32), "table": np.float32([[-1, 0, 1]])}
    return CodebookColumns(**(given | change))


def with_element(x: np.ndarray, at: tuple[int, int], value: float) -> np.ndarray:
    x = x.copy()
    x[at] = value
    return x


BAD_GRIDS = [
    (affine(scale=np.ones((2, 1))), "scale must have dtype float32, got float64"),
    (affine(scale=np.ones(2, np.float32)), "scale must have two axes"),
    (affine(scale=np.ones((3, 1), np.float32)), r"scale must have shape \[1 or 2, groups\], got \[3, 1\]"),
    (affine(scale=np.ones((2, 0), np.float32), zero_point=np.zeros((2, 0), np.int32)), "scale must have shape"),
    (affine(scale=np.float32([[1], [0]])), r"scale\[1, 0\] must be finite and positive, got 0"),
    (affine(scale=np.float32([[-1], [1]])), r"scale\[0, 0\] must be finite and positive"),
    (affine(scale=np.float32([[1], [math.nan]])), r"scale\[1, 0\] must be finite and positive"),
    (affine(scale=np.float32([[1], [math.inf]])), r"scale\[1, 0\] must be finite and positive"),
    (affine(zero_point=np.zeros((2, 1), np.int64)), "zero_point must have dtype int32"),
    (affine(zero_point=np.zeros((1, 1), np.int32)), r"zero_point must have shape \[2, 1\]"),
    (affine(zero_point=np.full((2, 1), 8, np.int32)), r"zero_point\[0, 0\] must be in \[-8, 7\], got 8"),
    (affine(qmin=8), "qmin 8 and qmax 7"),
    (affine(qmax=1 << 16), "qmax 65536"),
    (affine(scale=np.ones((2, 2), np.float32), zero_point=np.zeros((2, 2), np.int32)), "give group_of_column"),
    (affine(group_of_column=np.zeros(2, np.int32)), "group_of_column must have 3 elements, got 2"),
    (affine(group_of_column=np.zeros(3)), "group_of_column must have dtype int32"),
    (affine(group_of_column=np.int32([0, 1, 0])), r"group_of_column\[1\] must be in \[0, 1\), got 1"),
    (affine(group_of_column=np.int32([0, 0, -1])), r"group_of_column\[2\] must be in \[0, 1\), got -1"),
    (codebook(table=np.zeros((1, 3))), "table must have dtype float32"),
    (codebook(table=np.zeros(3, np.float32)), "table must have two axes"),
    (codebook(table=np.zeros((3, 3), np.float32)), r"table must have shape \[1 or 2, levels\]"),
    (codebook(table=np.zeros((1, 0), np.float32)), "1 to 256 entries"),
    (codebook(table=np.zeros((1, 257), np.float32)), "1 to 256 entries"),
    (codebook(table=np.float32([[1, 0]])), "increasing"),
    (codebook(table=np.float32([[0, math.nan]])), r"table\[1\] must be finite"),
    (codebook(table=np.zeros((2, 6), np.float32)[:, ::2]), "table must be in C order"),
    (codebook(scale=np.float32([[0]])), r"scale\[0, 0\] must be finite and positive"),
]


@pytest.mark.parametrize(("grids", "message"), BAD_GRIDS)
def test_grids(grids: AffineColumns | CodebookColumns, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        round_columns(WEIGHTS, EYE, grids)
    with pytest.raises(ValueError, match=message):
        descend(WEIGHTS, EYE, CODES, grids)


BAD_WEIGHTS = [
    (np.zeros((2, 3)), "weights must have dtype float32, got float64"),
    (np.zeros(3, np.float32), "weights must have two axes"),
    (np.zeros((2, 3, 1), np.float32), "weights must have two axes"),
    (np.zeros((3, 2), np.float32).T, "weights must be in C order"),
    (np.zeros((2, 6), np.float32)[:, ::2], "weights must be in C order"),
    (with_element(WEIGHTS, (1, 2), math.nan), r"weights\[1, 2\] must be finite, got nan"),
    (with_element(WEIGHTS, (0, 1), math.inf), r"weights\[0, 1\] must be finite, got inf"),
]


@pytest.mark.parametrize(("weights", "message"), BAD_WEIGHTS)
def test_weights(weights: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        round_columns(weights, EYE, affine())
    with pytest.raises(ValueError, match=message):
        descend(weights, EYE, CODES, affine())


BAD_MATRICES = [
    (np.eye(3, dtype=np.float32), "must have dtype float64, got float32"),
    (np.eye(4), r"must have shape \[3, 3\], got \[4, 4\]"),
    (np.zeros((3, 2)), r"must have shape \[3, 3\], got \[3, 2\]"),
    (np.ones(3), "must have two axes"),
    (np.eye(6)[::2, ::2], "must be in C order"),
    (with_element(EYE, (1, 1), 0.0), r"diagonal of \w+ must be positive, got 0 at \[1, 1\]"),
    (with_element(EYE, (2, 2), -1.0), r"diagonal of \w+ must be positive, got -1 at \[2, 2\]"),
    (with_element(EYE, (0, 2), math.nan), r"\[0, 2\] must be finite, got nan"),
    (with_element(EYE, (0, 0), math.inf), r"\[0, 0\] must be finite, got inf"),
]


@pytest.mark.parametrize(("matrix", "message"), BAD_MATRICES)
def test_matrices(matrix: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        round_columns(WEIGHTS, matrix, affine())
    with pytest.raises(ValueError, match=message):
        descend(WEIGHTS, matrix, CODES, affine())


def test_what_is_not_symmetric() -> None:
    with pytest.raises(ValueError, match=r"hessian must be symmetric, but \[2, 0\] is 0 and \[0, 2\] is 0.5"):
        descend(WEIGHTS, with_element(EYE, (0, 2), 0.5), CODES, affine())


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 3), np.int64), "codes must have dtype int32, got int64"),
        (np.zeros((3, 2), np.int32), r"codes must have shape \[2, 3\], got \[3, 2\]"),
        (np.zeros((3, 2), np.int32).T, "codes must be in C order"),
        (np.full((2, 3), 8, np.int32), r"codes\[0, 0\] must be in \[-8, 7\], got 8"),
        (np.full((2, 3), -9, np.int32), r"codes\[0, 0\] must be in \[-8, 7\], got -9"),
    ],
)
def test_codes(codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        descend(WEIGHTS, EYE, codes, affine())


def test_codes_outside_a_codebook() -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 2\], got 3"):
        descend(WEIGHTS, EYE, np.full((2, 3), 3, np.int32), codebook())


@pytest.mark.parametrize(
    ("linear", "message"),
    [
        (np.zeros((2, 3), np.float32), "linear must have dtype float64"),
        (np.zeros((2, 2)), r"linear must have shape \[2, 3\]"),
        (np.full((2, 3), math.nan), r"linear\[0, 0\] must be finite"),
    ],
)
def test_linear_terms(linear: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        descend(WEIGHTS, EYE, CODES, affine(), linear=linear)


def test_what_is_no_array_and_negative_sweeps() -> None:
    with pytest.raises(TypeError, match="weights must be a NumPy array"):
        round_columns([[1.0]], EYE, affine())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scale must be a NumPy array"):
        round_columns(WEIGHTS, EYE, affine(scale=[[1.0]]))
    with pytest.raises(ValueError, match="sweeps must not be negative, got -1"):
        descend(WEIGHTS, EYE, CODES, affine(), sweeps=-1)
