"""Kernels that are learned begin with the codes they are given, and go where gradients and the regularizer say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from detent.records.grid import Grid
from detent.rounding.learned_kernels import Anneal, LearnedKernel, SoftKernel, SoftNeighbours, StraightKernel

CPU = torch.device("cpu")
Make = Callable[[np.ndarray, np.ndarray, Grid], LearnedKernel]
SOFT: dict[str, Make] = {
    "soft": SoftKernel,
    "neighbours": lambda kernel, codes, grid: SoftNeighbours(kernel, codes, grid, CPU),
}
KINDS: dict[str, Make] = {**SOFT, "straight": lambda kernel, codes, grid: StraightKernel(kernel, codes, grid, CPU)}

SHAPE = (6, 8, 3)


def limits(size: int) -> np.ndarray:
    return np.linspace(0.7, 2.1, size).astype(np.float32)


def symmetric(bits: int, size: int = 1, axis: int | None = None, **more: Any) -> Grid:
    return Grid(kind="symmetric", bits=bits, signed=True, threshold=limits(size), axis=axis, **more)


def codebook(bits: int, axis: int | None = None, *, each: bool = False) -> Grid:
    random = np.random.default_rng(4)
    size = 1 if axis is None else SHAPE[axis]
    table = np.sort(random.uniform(-128, 128, size=(size, 2**bits) if each else 2**bits), axis=-1)
    return Grid(kind="lut", bits=bits, signed=True, threshold=limits(size), axis=axis, table=table.astype(np.float32))


AFFINE: dict[str, Grid] = {
    "per_tensor": symmetric(4),
    "two_bits": symmetric(2, 6, 0),
    "outputs": symmetric(4, 6, 0),
    "inputs": symmetric(3, 8, 1),
    "last_axis": symmetric(3, 3, 2),
    "narrow": symmetric(3, 6, 0, narrow_range=True),
    "eight_bits": symmetric(8, 6, 0),
    "sixteen_bits": symmetric(16, 6, 0),
    "groups": symmetric(4, 24, 0, group_size=2),
    "power_of_two": Grid(
        kind="power_of_two", bits=4, signed=True, threshold=2.0 ** np.arange(-2, 4).astype(np.float32), axis=0
    ),
    "unsigned": Grid(kind="symmetric", bits=4, signed=False, threshold=limits(6), axis=0),
    "uniform": Grid(kind="uniform", bits=4, signed=False, lower=-limits(6), upper=2 * limits(6), axis=0),
    "uniform_groups": Grid(
        kind="uniform", bits=3, signed=True, lower=-limits(24), upper=2 * limits(24), axis=0, group_size=2
    ),
}
CODEBOOKS: dict[str, Grid] = {
    "codebook": codebook(3),
    "codebook_of_outputs": codebook(3, 0),
    "codebook_of_inputs": codebook(4, 1),
    "codebook_each": codebook(2, 0, each=True),
}
BEGINNING = [(name, kind) for name in KINDS for kind in [*AFFINE, *CODEBOOKS] if name != "soft" or kind in AFFINE]


def kernel_of(seed: int = 0) -> np.ndarray:
    """Weights, some of them far beyond the grids."""
    return np.random.default_rng(seed).normal(scale=1.5, size=SHAPE).astype(np.float32)


def on_grid(grid: Grid, kernel: np.ndarray) -> np.ndarray:
    return np.asarray(grid.codes(kernel)).astype(np.int32)


def moved(grid: Grid, codes: np.ndarray, seed: int = 1) -> np.ndarray:
    """Codes as closed-form rounding leaves them: up to two from the nearest, many at the ends."""
    low, high = grid.code_range
    random = np.random.default_rng(seed)
    found = np.clip(codes + random.integers(-2, 3, size=codes.shape), low, high)
    found.flat[:4] = low, high, low, high
    return found.astype(np.int32)


def at(step: int, **given: Any) -> Anneal:
    return Anneal(**{"step": step, "rate": 0.05, "beta": 4.0, "weight": 0.0, **given})


def values(grid: Grid, codes: np.ndarray) -> np.ndarray:
    return grid.values(np.ascontiguousarray(codes.astype(grid.storage)))


@pytest.mark.parametrize(("name", "kind"), BEGINNING)
def test_it_begins_with_the_codes_it_is_given(name: str, kind: str) -> None:
    grid, kernel = {**AFFINE, **CODEBOOKS}[kind], kernel_of()
    nearest = on_grid(grid, kernel)
    for codes in (nearest, moved(grid, nearest), np.full_like(nearest, 1)):
        held = codes.copy()
        found = KINDS[name](kernel, codes, grid)
        assert np.array_equal(found.codes(), held)
        assert np.array_equal(codes, held)
        assert found.value().shape == kernel.shape
        assert found.value().dtype == torch.float32


@pytest.mark.parametrize(("name", "kind"), BEGINNING)
def test_weights_that_are_on_the_grid_stay(name: str, kind: str) -> None:
    grid = {**AFFINE, **CODEBOOKS}[kind]
    low, high = grid.code_range
    codes = np.random.default_rng(3).integers(low, high + 1, size=SHAPE).astype(np.int32)
    kernel = values(grid, codes)
    found = KINDS[name](kernel, codes, grid)
    assert np.array_equal(found.codes(), codes)
    np.testing.assert_allclose(found.value().numpy(), kernel, rtol=2e-3, atol=2e-3 * float(grid.scale.max()))


@pytest.mark.parametrize("name", KINDS)
def test_codes_of_all_types_are_taken(name: str) -> None:
    grid, kernel = AFFINE["uniform"], kernel_of()
    codes = grid.codes(kernel)
    assert codes.dtype == np.uint8
    assert np.array_equal(KINDS[name](kernel, codes, grid).codes(), codes)


@pytest.mark.parametrize("kind", AFFINE)
def test_compiled_and_torch_kernels_move_alike(kind: str) -> None:
    grid, kernel = AFFINE[kind], kernel_of()
    codes = on_grid(grid, kernel)
    both = [make(kernel, codes, grid) for make in SOFT.values()]
    random = np.random.default_rng(2)
    # Where both neighbours are on the grid; past its ends one kind knows no other code.
    low, high = grid.code_range
    inside = (codes > low) & (codes < high)
    steps = np.abs(values(grid, np.minimum(codes + 1, high)) - values(grid, np.minimum(codes + 1, high) - 1))
    for step in range(1, 16):
        ours, theirs = (one.value().numpy() for one in both)
        assert np.abs(ours - theirs)[inside].max(initial=0) <= 0.01 * steps.max()
        gradient = torch.from_numpy(random.normal(size=SHAPE).astype(np.float32))
        for one in both:
            one.move(gradient, at(step, weight=0.5, rate=0.2))
    same = both[0].codes() == both[1].codes()
    assert same[inside].mean() > 0.99


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("kind", ["outputs", "groups", "uniform"])
def test_the_regularizer_alone_ends_at_codes(name: str, kind: str) -> None:
    grid, kernel = AFFINE[kind], kernel_of()
    codes = on_grid(grid, kernel)
    found = SOFT[name](kernel, codes, grid)
    for step in range(1, 400):
        found.move(torch.zeros(SHAPE), at(step, beta=2.0, weight=1.0))
    ended = found.value().numpy()
    assert np.array_equal(ended, values(grid, found.codes()))
    assert np.array_equal(found.codes(), codes)


@pytest.mark.parametrize(("name", "kind"), BEGINNING)
def test_a_gradient_pushes_codes_down_it(name: str, kind: str) -> None:
    grid = {**AFFINE, **CODEBOOKS}[kind]
    low, high = grid.code_range
    middle = np.full(SHAPE, (low + high) // 2, np.int32)
    kernel = values(grid, middle)
    for sign in (1.0, -1.0):
        # Soft weights know the neighbour on their own side only.
        lean = kernel - np.float32(sign * 1e-3) * np.float32(grid.scale.min())
        found = KINDS[name](lean, middle, grid)
        # Straight through, codebooks are crossed in parts of a 128th of their reach.
        rate = 2.0 if grid.table is not None and name == "straight" else 0.2
        for step in range(1, 60):
            found.move(torch.full(SHAPE, sign), at(step, rate=rate))
        changed = found.codes() - middle
        assert (np.sign(changed) == -sign).all()
        assert name == "straight" or (np.abs(changed) == 1).all()


def test_straight_through_goes_on_to_the_end_of_the_grid() -> None:
    grid = AFFINE["outputs"]
    kernel = np.zeros(SHAPE, np.float32)
    found = StraightKernel(kernel, on_grid(grid, kernel), grid, CPU)
    for step in range(1, 400):
        found.move(torch.full(SHAPE, -1.0), at(step))
    assert (found.codes() == grid.code_range[1]).all()


def test_straight_through_comes_back_from_beyond_the_ends_of_the_grid() -> None:
    grid = AFFINE["outputs"]
    kernel = np.zeros(SHAPE, np.float32)
    found = StraightKernel(kernel, on_grid(grid, kernel), grid, CPU)
    for step in range(1, 200):
        found.move(torch.full(SHAPE, -1.0), at(step, rate=1.0))
    assert (found.codes() == grid.code_range[1]).all()
    for step in range(200, 400):
        found.move(torch.full(SHAPE, 1.0), at(step, rate=1.0))
    assert (found.codes() == grid.code_range[0]).all()


def test_straight_through_runs_with_values_of_the_grid() -> None:
    for grid in (AFFINE["groups"], AFFINE["uniform"], CODEBOOKS["codebook_each"]):
        kernel = kernel_of()
        found = StraightKernel(kernel, moved(grid, on_grid(grid, kernel)), grid, CPU)
        for step in range(1, 10):
            found.move(torch.randn(SHAPE, generator=torch.Generator().manual_seed(step)), at(step, rate=0.3))
            assert np.array_equal(found.value().numpy(), values(grid, found.codes()))


@pytest.mark.parametrize("name", SOFT)
def test_soft_weights_stay_between_two_neighbours(name: str) -> None:
    grid, kernel = AFFINE["outputs"], kernel_of()
    codes = moved(grid, on_grid(grid, kernel))
    found = SOFT[name](kernel, codes, grid)
    for step in range(1, 60):
        found.move(torch.randn(SHAPE, generator=torch.Generator().manual_seed(step)), at(step, rate=1.0))
        assert np.abs(found.codes() - codes).max() <= 1
        low, high = (limit.reshape(-1, 1, 1) for limit in grid.limits)
        value = found.value().numpy()
        assert ((value >= 1.000001 * low) & (value <= 1.000001 * high)).all()
