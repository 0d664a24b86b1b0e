"""Directions: their outer products are the unit matrix, exactly if there are as many as outputs and else on average."""

from __future__ import annotations

import numpy as np
import pytest

from detent.sensitivity import directions as module
from detent.sensitivity.directions import directions, fisher


def drawn(samples: int, size: int, count: int, seed: int = 0) -> np.ndarray:
    return directions(samples, size, count, np.random.default_rng(seed)).astype(np.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 257])
@pytest.mark.parametrize("more", [0, 1, 100])
def test_as_many_as_outputs_are_an_orthonormal_basis(size: int, more: int) -> None:
    found = drawn(3, size, size + more)
    assert found.shape == (size, 3, size)
    for sample in range(3):
        basis = found[:, sample]
        np.testing.assert_allclose(basis.T @ basis, np.eye(size), atol=2e-6)
        np.testing.assert_allclose(basis @ basis.T, np.eye(size), atol=2e-6)


@pytest.mark.parametrize(("size", "count"), [(6, 1), (6, 2), (50, 8), (2, 1)])
def test_fewer_are_orthogonal_and_of_the_size_that_makes_up_for_the_rest(size: int, count: int) -> None:
    found = drawn(4, size, count)
    assert found.shape == (count, 4, size)
    for sample in range(4):
        inner = found[:, sample] @ found[:, sample].T
        np.testing.assert_allclose(inner, np.eye(count) * size / count, atol=1e-5 * size)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_outer_products_are_the_unit_matrix_on_average_also_between_samples(
    orthogonal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not orthogonal:
        monkeypatch.setattr(module, "MOST_ORTHOGONAL", 3)
    runs, size, samples = 4000, 5, 2
    found = np.stack([drawn(samples, size, 2, seed) for seed in range(runs)]).reshape(runs, 2, samples * size)
    mean = np.einsum("rki,rkj->ij", found, found) / runs
    # The sums of two products have deviations of at most their size, about 5 / 2 for these.
    np.testing.assert_allclose(mean, np.eye(samples * size), atol=5 * 2.5 / runs**0.5)


def test_many_outputs_get_random_signs() -> None:
    found = drawn(2, 5000, 3)
    assert found.shape == (3, 2, 5000)
    np.testing.assert_allclose(np.abs(found), 3**-0.5, rtol=1e-6)
    assert abs(found.mean()) < 0.02
    # Nearly orthogonal: cosines of about 1/sqrt(5000).
    inner = found[:, 0] @ found[:, 0].T * 3 / 5000
    assert np.abs(inner - np.eye(3)).max() < 0.07


def test_the_bound_between_both() -> None:
    assert drawn(1, 4096, 1).dtype == np.float64
    assert len(np.unique(np.abs(directions(1, 4097, 1, np.random.default_rng(0))))) == 1
    assert len(np.unique(np.abs(directions(1, 4096, 2, np.random.default_rng(0))[1]))) > 1


@pytest.mark.parametrize("size", [10, 5000])
def test_the_seed_decides(size: int) -> None:
    first = directions(3, size, 4, np.random.default_rng(7))
    assert first.dtype == np.float32
    assert first.tobytes() == directions(3, size, 4, np.random.default_rng(7)).tobytes()
    assert first.tobytes() != directions(3, size, 4, np.random.default_rng(8)).tobytes()


def test_samples_get_directions_of_their_own() -> None:
    found = drawn(8, 20, 2)
    assert len({found[:, sample].tobytes() for sample in range(8)}) == 8


def test_fisher_directions_add_up_to_the_fisher_matrix() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 2, 6)) * 3
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    unit = drawn(3, 12, 12).reshape(12, 3, 2, 6)
    turned = fisher(p.astype(np.float32), unit.astype(np.float32)).astype(np.float64)
    for sample in range(3):
        found = np.einsum("kai,kbj->aibj", turned[:, sample], turned[:, sample])
        wanted = np.zeros((2, 6, 2, 6))
        for token in range(2):
            q = p[sample, token]
            wanted[token, :, token, :] = np.diag(q) - np.outer(q, q)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_fisher_directions_of_a_certain_prediction_vanish() -> None:
    p = np.float32([[1, 0, 0]])
    np.testing.assert_array_equal(fisher(p, np.ones((2, 1, 3), np.float32)), 0)
