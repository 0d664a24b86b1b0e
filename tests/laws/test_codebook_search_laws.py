"""What any codebook search must satisfy, whatever its algorithm."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detent.kernels.codebook_search import CodebookSearch, search_codebook
from detent.kernels.quantize import lut_fake_quantize
from detent.kernels.weight_search import search_weights
from tests.cases import samples

Array = npt.NDArray[np.float32]


def kernel(seed: int, shape: tuple[int, ...] = (8, 30)) -> Array:
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(size=(shape[0], *[1] * (len(shape) - 1))))
    return (rng.standard_t(4, shape) * sizes * 0.05).astype(np.float32)


def quantized(w: Array, found: CodebookSearch) -> Array:
    scale = found.thresholds / np.float32(128)
    if len(found.tables) == 1:
        return lut_fake_quantize(w, scale, found.tables[0], axis=0)
    rows = zip(w, scale, found.tables, strict=True)
    return np.stack([lut_fake_quantize(np.ascontiguousarray(row), s.reshape(1), table) for row, s, table in rows])


def least_by_brute_force(values: Array, h: Array, count: int, reach: int) -> float:
    """The least weighted squared error over every codebook of `count` levels within -reach..reach that holds zero."""
    points = [p for p in range(-reach, reach + 1) if p]
    books = np.array([(0, *others) for others in itertools.combinations(points, count - 1)], np.float64)
    nearest = np.abs(values.astype(np.float64)[None, :, None] - books[:, None, :]).min(axis=2)
    return float((nearest**2 * h).sum(axis=1).min())


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-7, 7, width=32), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
    weighted=st.booleans(),
)
def test_no_codebook_does_better_at_the_same_threshold(values: list[float], seed: int, weighted: bool) -> None:
    x = np.array(values, np.float32)
    h = np.random.default_rng(seed).random(x.shape, np.float32)
    options: dict[str, Any] = {"metric": "hmse", "weights": h} if weighted else {}
    # A threshold of 128 makes values their own places on the lattice; levels beyond them cannot help.
    found = search_codebook(x, bits=2, axis=None, thresholds=np.array([128], np.float32), **options)
    least = least_by_brute_force(x, h if weighted else np.ones_like(h), 4, 8)
    assert found.errors[0] * x.size == pytest.approx(least, rel=1e-9, abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(2, 7), scope=st.sampled_from(["tensor", "channel"]))
def test_the_codebook_is_what_it_says(seed: int, bits: int, scope: Any) -> None:
    w = kernel(seed)
    found = search_codebook(w, bits=bits, scope=scope)
    assert found.tables.shape == (1 if scope == "tensor" else len(w), 1 << bits)
    assert (np.diff(found.tables) > 0).all()
    assert (found.tables == np.rint(found.tables)).all()
    assert found.tables.min() >= -128
    assert found.tables.max() <= 127
    assert (found.tables == 0).any(axis=1).all()
    difference = quantized(w, found).astype(np.float64) - w
    np.testing.assert_allclose(found.errors, np.mean(difference**2, axis=1), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(2, 7),
    scale=st.sampled_from(["symmetric", "power_of_two"]),
    scope=st.sampled_from(["tensor", "channel"]),
)
def test_never_worse_than_the_best_grid_of_as_many_bits(seed: int, bits: int, scale: Any, scope: Any) -> None:
    w = kernel(seed)
    (affine,) = search_weights(w, bits=[bits], grid=scale, metric="mse")
    found = search_codebook(w, bits=bits, scale=scale, scope=scope)
    assert found.errors.sum() <= affine.errors.sum() * (1 + 1e-6)
    if scope == "channel":
        assert (found.errors <= affine.errors * (1 + 1e-6)).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), weighted=st.booleans())
def test_error_never_rises_with_bits_at_fixed_thresholds(seed: int, weighted: bool) -> None:
    w = kernel(seed)
    thresholds = np.abs(w).max(axis=1)
    h = np.random.default_rng(seed).random(w.shape, np.float32)
    options: dict[str, Any] = {"metric": "hmse", "weights": h} if weighted else {}
    errors = [search_codebook(w, bits=b, thresholds=thresholds, **options).errors.sum() for b in range(2, 8)]
    assert all(more <= fewer * (1 + 1e-6) for fewer, more in itertools.pairwise(errors))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-20, 20))
def test_powers_of_two_pass_through(seed: int, exponent: int) -> None:
    w = kernel(seed)
    plain = search_codebook(w, bits=4, min_threshold=2.0**-80)
    scaled = search_codebook(np.ldexp(w, exponent), bits=4, min_threshold=2.0**-80)
    np.testing.assert_array_equal(scaled.tables, plain.tables)
    np.testing.assert_array_equal(scaled.thresholds, np.ldexp(plain.thresholds, exponent))


@pytest.mark.parametrize("scope", ["tensor", "channel"])
def test_power_of_two_thresholds_are_powers_of_two(scope: Any) -> None:
    found = search_codebook(kernel(0), bits=3, scale="power_of_two", scope=scope)
    assert (np.frexp(found.thresholds)[0] == 0.5).all()


def test_thresholds_are_the_best_for_the_levels() -> None:
    w = kernel(1, (16, 100))
    found = search_codebook(w, bits=4)
    for factor in np.linspace(0.3, 1.5, 61, dtype=np.float32):
        moved = lut_fake_quantize(w, found.thresholds * factor / np.float32(128), found.tables[0], axis=0)
        errors = np.mean((moved.astype(np.float64) - w) ** 2, axis=1)
        # Later turns follow the closed form from where they are, so a channel may miss a far better valley by little.
        assert errors.sum() >= found.errors.sum() * (1 - 1e-6), factor
        assert (errors >= found.errors * 0.9).all(), factor


def test_a_codebook_of_its_own_is_no_worse_for_a_channel() -> None:
    w = kernel(2, (16, 64))
    shared = search_codebook(w, bits=4)
    own = search_codebook(w, bits=4, scope="channel")
    assert own.errors.sum() < shared.errors.sum()


def test_a_channel_of_zeros_stays_zero_and_bothers_no_other() -> None:
    w = kernel(3)
    alone = search_codebook(w[1:], bits=3)
    w[0] = 0
    found = search_codebook(w, bits=3)
    np.testing.assert_array_equal(found.tables, alone.tables)
    np.testing.assert_array_equal(found.thresholds[1:], alone.thresholds)
    assert found.errors[0] == 0
    assert found.thresholds[0] == np.float32(2.0**-16)


def test_few_values_are_met_exactly() -> None:
    levels = np.array([-128, -31, 0, 90], np.float32)
    w = np.random.default_rng(0).choice(levels, (4, 50)) * np.float32(0.25)
    found = search_codebook(w, bits=2, thresholds=np.full(4, 32, np.float32))
    np.testing.assert_array_equal(found.tables, [levels])
    assert not found.errors.any()


def test_better_than_rounded_uniform_levels_on_bell_shaped_weights() -> None:
    w = samples((32, 200), seed=5)
    (affine,) = search_weights(w, bits=[4], grid="symmetric", metric="mse")
    assert search_codebook(w, bits=4).errors.sum() < 0.85 * affine.errors.sum()
