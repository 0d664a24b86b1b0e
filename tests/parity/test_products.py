"""Matrix products equal their NumPy twin bit for bit, and the exact product to float32 accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from detent.kernels import products
from detent.kernels.reference import products as twin
from tests import cases
from tests.fanout import assert_parity

SHAPES = [
    (1, 0, 3),
    (1, 1, 1),
    (3, 2, 33),
    (1, 127, 5),
    (2, 128, 16),
    (18, 129, 9),
    (1, 300, 70),
    (1, 517, 97),
    (0, 5, 2),
]


def innermost(x: np.ndarray) -> np.ndarray:
    """The same array with its first axis innermost in memory."""
    return np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [np.ascontiguousarray, innermost])
def test_moments_equal_their_twin(shape: tuple[int, int, int], layout) -> None:
    x = layout(cases.samples(shape))
    assert_parity(lambda: products.moments(x), twin.moments(x))
    batch, _, columns = shape
    begun = twin.moments(cases.samples((batch, 40, columns)))

    def onto(of):
        return of.moments(x, sums=begun[0].copy(), products=begun[1].copy())

    assert_parity(lambda: onto(products), onto(twin))


FORMS = [(1, 1, 1), (2, 7, 33), (1, 9, 130), (5, 3, 9), (1, 20, 300), (2, 263, 64), (2, 3, 0), (0, 5, 2), (3, 0, 4)]


@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_forms_equal_their_twin(shape: tuple[int, int, int]) -> None:
    batch, _, size = shape
    a, b = cases.samples(shape), cases.samples(shape)[::-1].copy()
    g = cases.samples((batch, size, size))
    assert_parity(lambda: products.forms(a, g, b), twin.forms(a, g, b))
    # Below the blocks of the diagonal, nothing is read.
    assert_parity(lambda: products.forms(a, g), twin.forms(a, g))


def test_awkward_numbers_reach_the_sums_they_take_part_in() -> None:
    x = cases.awkward((2, 130, 9))
    assert_parity(lambda: products.moments(x), twin.moments(x))
    x = innermost(cases.awkward((19, 130, 3)))
    assert_parity(lambda: products.moments(x), twin.moments(x))
    a, g = cases.awkward((1, 11, 131)), cases.awkward((1, 131, 131))
    assert_parity(lambda: products.forms(a, g, a), twin.forms(a, g, a))
    assert_parity(lambda: products.forms(a, g), twin.forms(a, g))


def test_moments_are_accurate_and_may_be_added_up_in_parts() -> None:
    x = cases.samples((3, 640, 50))
    sums, squares = products.moments(x)
    assert np.array_equal(squares, squares.transpose(0, 2, 1))
    wide = x.astype(np.float64)
    # At most 128 float32 roundings of a sum, whatever the signs.
    allowed = 128 * 2.0**-24
    size = np.abs(wide)
    assert np.all(np.abs(squares - wide.transpose(0, 2, 1) @ wide) <= allowed * (size.transpose(0, 2, 1) @ size))
    assert np.all(np.abs(sums - wide.sum(axis=1)) <= allowed * size.sum(axis=1))
    first = products.moments(np.ascontiguousarray(x[:, :256]))
    products.moments(np.ascontiguousarray(x[:, 256:]), sums=first[0], products=first[1])
    assert np.array_equal(first[0], sums)
    assert np.array_equal(first[1], squares)
    assert np.array_equal(products.moments(innermost(x))[1], squares)


def test_forms_are_accurate() -> None:
    a, g, b = cases.samples((2, 6, 300)), cases.samples((2, 300, 300)), cases.samples((2, 6, 300))
    wide = [part.astype(np.float64) for part in (a, g, b)]
    wanted = np.einsum("bni,bij,bnj->bn", *wide)
    size = np.einsum("bni,bij,bnj->bn", *map(np.abs, wide))
    assert np.all(np.abs(products.forms(a, g, b) - wanted) <= 128 * 2.0**-24 * size)
    g += g.transpose(0, 2, 1)
    wide = [part.astype(np.float64) for part in (a, g, a)]
    size = np.einsum("bni,bij,bnj->bn", *map(np.abs, wide))
    wanted = np.einsum("bni,bij,bnj->bn", *wide)
    assert np.all(np.abs(products.forms(a, g) - wanted) <= 128 * 2.0**-24 * size)


FLOATS = np.zeros((1, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("x", "sums", "squares", "message"),
    [
        (np.zeros((1, 2, 3)), None, None, "float32"),
        (np.zeros((2, 3), np.float32), None, None, "three axes"),
        (np.zeros((2, 3, 2), np.float32)[::-1], None, None, "C order"),
        (np.zeros((3, 2, 4), np.float32).transpose(0, 2, 1), None, None, "C order"),
        (FLOATS, np.zeros((1, 2)), None, r"sums .*\[1, 3\]"),
        (FLOATS, np.zeros((1, 3), np.float32), None, "sums .*float64"),
        (FLOATS, None, np.zeros((1, 2, 3)), r"\[1, 3, 3\]"),
        (FLOATS, None, np.zeros((1, 3, 3), np.float32), "products .*float64"),
    ],
)
def test_moments_refuse_what_does_not_fit(x, sums, squares, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        products.moments(x, sums=sums, products=squares)


def test_moments_are_not_added_to_what_is_read_only() -> None:
    sums = np.zeros((1, 3))
    sums.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        products.moments(FLOATS, sums=sums)


def test_forms_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="g must have shape"):
        products.forms(FLOATS, FLOATS, FLOATS)
    square = np.zeros((1, 3, 3), np.float32)
    with pytest.raises(ValueError, match="b must have shape"):
        products.forms(FLOATS, square, square)
    with pytest.raises(ValueError, match="C order"):
        products.forms(FLOATS, square, np.zeros((1, 3, 2), np.float32).transpose(0, 2, 1))
    with pytest.raises(TypeError, match="array"):
        products.forms([[1.0]], square, FLOATS)  # type: ignore[arg-type]
