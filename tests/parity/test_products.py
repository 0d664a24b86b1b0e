"""Matrix products equal their NumPy twin bit for bit, and the exact product to float32 accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from detent.kernels import products
from detent.kernels.reference import products as twin
from tests import cases
from tests.fanout import assert_parity

SHAPES = [(0, 3), (1, 1), (2, 33), (127, 5), (128, 16), (129, 31), (300, 70), (517, 97)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gram_equals_its_twin(shape: tuple[int, int]) -> None:
    x = cases.samples(shape)
    assert_parity(lambda: products.gram(x), twin.gram(x))
    begun = twin.gram(cases.samples((40, shape[1])))
    assert_parity(lambda: products.gram(x, out=begun.copy()), twin.gram(x, out=begun.copy()))


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 129, 3), (9, 130, 65), (33, 64, 40), (3, 0, 4), (0, 5, 2)], ids=str)
def test_multiply_equals_its_twin(shape: tuple[int, int, int]) -> None:
    rows, depth, columns = shape
    a, b = cases.samples((rows, depth)), cases.samples((depth, columns))
    assert_parity(lambda: products.multiply(a, b), twin.multiply(a, b))


def test_awkward_numbers_reach_the_sums_they_take_part_in() -> None:
    x = cases.awkward((130, 9))
    assert_parity(lambda: products.gram(x), twin.gram(x))
    a, b = cases.awkward((11, 131)), cases.awkward((131, 37))
    assert_parity(lambda: products.multiply(a, b), twin.multiply(a, b))


def test_gram_is_symmetric_accurate_and_may_be_added_up_in_parts() -> None:
    x = cases.samples((640, 50))
    found = products.gram(x)
    assert np.array_equal(found, found.T)
    wide = x.astype(np.float64)
    # At most 128 float32 roundings of a sum of products, whatever their signs.
    assert np.all(np.abs(found - wide.T @ wide) <= 128 * 2.0**-24 * (np.abs(wide).T @ np.abs(wide)))
    parts = products.gram(np.ascontiguousarray(x[256:]), out=products.gram(np.ascontiguousarray(x[:256])))
    assert np.array_equal(parts, found)


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (np.zeros((2, 3)), None, "float32"),
        (np.zeros(3, np.float32), None, "C-ordered matrix"),
        (np.zeros((3, 2), np.float32).T, None, "C-ordered matrix"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 2)), r"\[3, 3\]"),
        (np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32), "float64"),
    ],
)
def test_gram_refuses_what_does_not_fit(x: np.ndarray, out: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        products.gram(x, out=out)


def test_multiply_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="3 rows"):
        products.multiply(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(TypeError, match="array"):
        products.multiply([[1.0]], np.zeros((1, 1), np.float32))  # type: ignore[arg-type]
