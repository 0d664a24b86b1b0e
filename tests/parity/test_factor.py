"""Triangular factors equal their NumPy twin bit for bit, and are factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detent.kernels import factor
from detent.kernels.reference import factor as twin
from tests.fanout import assert_parity

SIZES = [0, 1, 2, 9, 15, 16, 17, 33, 64, 130]


def definite(size: int) -> np.ndarray:
    x = np.random.default_rng(size).normal(size=(size + 3, size))
    return x.T @ x + 1e-3 * np.eye(size)


@pytest.mark.parametrize("size", SIZES)
def test_the_factor_equals_its_twin(size: int) -> None:
    h = definite(size)
    assert_parity(lambda: factor.inverse_factor(h), twin.inverse_factor(h))


@pytest.mark.parametrize("shape", [(0, 3, 2), (1, 1, 1), (5, 0, 3), (7, 33, 520), (3, 5, 1100)], ids=str)
def test_the_product_equals_its_twin(shape: tuple[int, int, int]) -> None:
    rows, depth, columns = shape
    random = np.random.default_rng(1)
    a, b = random.normal(size=(rows, depth)), random.normal(size=(depth, columns))
    assert_parity(lambda: factor.multiply(a, b), twin.multiply(a, b))
    assert np.allclose(factor.multiply(a, b), a @ b)


@pytest.mark.parametrize("size", SIZES)
def test_it_factors_the_inverse(size: int) -> None:
    h = definite(size)
    u = factor.inverse_factor(h)
    assert np.array_equal(u, np.triu(u))
    assert np.allclose(u.T @ u @ h, np.eye(size), atol=1e-6)


def test_only_the_upper_half_is_read() -> None:
    h = definite(20)
    assert np.array_equal(factor.inverse_factor(np.triu(h)), factor.inverse_factor(h))


def with_(place: tuple[int, int], number: float) -> np.ndarray:
    h = definite(20)
    h[place] = number
    return h


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: factor.inverse_factor(with_((7, 7), -1.0)), "not positive definite"),
    (lambda: factor.inverse_factor(with_((0, 0), np.nan)), "not positive definite"),
    (lambda: factor.inverse_factor(with_((3, 5), np.inf)), "not positive definite"),
    (lambda: factor.inverse_factor(np.zeros((3, 3))), "not positive definite"),
    (lambda: factor.inverse_factor(np.zeros((3, 4))), "square"),
    (lambda: factor.inverse_factor(np.zeros(3)), "two axes"),
    (lambda: factor.inverse_factor(np.eye(3, dtype=np.float32)), "float64"),
    (lambda: factor.inverse_factor(np.eye(6)[::2, ::2]), "C order"),
    (lambda: factor.multiply(np.eye(3), np.eye(4)), "shapes"),
    (lambda: factor.multiply(np.eye(3), np.eye(3)[0]), "two axes"),
    (lambda: factor.multiply(np.eye(3), np.eye(3, dtype=int)), "float64"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
