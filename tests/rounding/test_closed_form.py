"""Closed-form rounding of one layer: never worse than before, and the best of all codes where rows are short."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.config import GptqConfig
from detent.records.grid import Grid
from detent.rounding import KernelRows, Objective, round_kernel
from detent.rounding.objective import PatchMoments

PLAIN: dict[str, Any] = {"refits": 0, "damping": 1e-6}


def problem(
    columns: int, rows: int, bits: int, seed: int, kind: str = "symmetric"
) -> tuple[Any, KernelRows, Objective]:
    """A linear layer, its inputs as float and as quantized layers give them, and what kernels cost."""
    random = np.random.default_rng(seed)
    layer = nn.Linear(columns, rows)
    graph = detent.capture(nn.Sequential(layer).eval(), torch.zeros(2, columns))
    (node,) = (node for node in graph.nodes() if node.weight is not None)
    kernel = random.normal(size=(rows, columns)).astype(np.float32)
    x = (random.normal(size=(1, 900, columns)) @ random.normal(size=(columns, columns))).astype(np.float32)
    noisy = x + random.normal(scale=0.2, size=x.shape).astype(np.float32)
    sums = PatchMoments(1, columns, rows)
    sums.add(noisy, x @ kernel.T)
    threshold = np.abs(kernel).max(axis=1) * np.float32(0.8)
    if kind == "power_of_two":
        threshold = 2 ** np.round(np.log2(threshold))
    grid = Grid(kind=kind, bits=bits, signed=True, threshold=threshold, axis=0)  # type: ignore[arg-type]
    return kernel, KernelRows(layer=node, shape=kernel.shape, grid=grid), sums.objective(central=True)


def cost(rows: KernelRows, objective: Objective, grid: Grid, codes: np.ndarray) -> float:
    return objective.cost(rows.of(grid.values(codes.astype(grid.storage))))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("columns", "bits"), [(2, 3), (3, 2), (4, 2)])
def test_short_rows_get_the_best_of_all_codes(columns: int, bits: int, seed: int) -> None:
    kernel, rows, objective = problem(columns, 2, bits, seed)
    found = round_kernel(kernel, rows.grid.codes(kernel), rows, objective, GptqConfig(**PLAIN))
    levels = range(rows.grid.qmin, rows.grid.qmax + 1)
    every = np.array(list(itertools.product(levels, repeat=columns)))
    values = every[:, None, :] * rows.grid.scale[None, :, None].astype(np.float64)
    through = values @ objective.hessian[0] - 2 * objective.cross[0]
    costs = (through * values).sum(axis=2) + objective.energy[0]
    assert cost(rows, objective, rows.grid, found.codes) == pytest.approx(costs.min(axis=0).mean(), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_long_rows_end_no_worse_than_nearest_and_much_better_on_average(bits: int, seed: int) -> None:
    kernel, rows, objective = problem(40, 8, bits, seed)
    nearest = rows.grid.codes(kernel)
    costs = [cost(rows, objective, rows.grid, nearest)]
    for options in ({"sweeps": 0}, {}):
        found = round_kernel(kernel, nearest, rows, objective, GptqConfig(**PLAIN, **options, exact_columns=0))
        assert found.grid is rows.grid
        costs.append(cost(rows, objective, rows.grid, found.codes))
    fitted = round_kernel(kernel, nearest, rows, objective, GptqConfig(damping=1e-6, exact_columns=0))
    costs.append(cost(rows, objective, fitted.grid, fitted.codes))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.6 * costs[0]


def test_on_a_fine_grid_next_to_nothing_is_lost() -> None:
    kernel, rows, objective = problem(12, 5, 16, 0)
    exact = replace(objective, cross=(kernel.astype(np.float64) @ objective.hessian[0])[None])
    rows = rows.on(replace(rows.grid, threshold=np.abs(kernel).max(axis=1)))
    found = round_kernel(kernel, rows.grid.codes(kernel), rows, exact, GptqConfig(refits=0))
    best = exact.cost(rows.of(kernel))
    assert cost(rows, exact, rows.grid, found.codes) - best < 1e-6 * float(exact.energy.mean())


def test_powers_of_two_stay() -> None:
    kernel, rows, objective = problem(12, 5, 3, 1, kind="power_of_two")
    found = round_kernel(kernel, rows.grid.codes(kernel), rows, objective, GptqConfig())
    assert found.grid is rows.grid


def test_inputs_that_never_differ_are_counted_and_do_no_harm() -> None:
    kernel, rows, objective = problem(6, 3, 4, 2)
    hessian, cross = objective.hessian.copy(), objective.cross.copy()
    hessian[:, 2], hessian[:, :, 2], cross[:, :, 2] = 0, 0, 0
    dead = replace(objective, hessian=hessian, cross=cross)
    found = round_kernel(kernel, rows.grid.codes(kernel), rows, dead, GptqConfig(refits=0))
    assert found.dead == 1
    # With nothing to tell, nearest to the float kernel is best.
    assert np.array_equal(found.codes[:, 2], rows.grid.codes(kernel)[:, 2])


def test_a_layer_without_any_signal_keeps_its_kernel() -> None:
    kernel, rows, objective = problem(6, 3, 4, 2)
    none = replace(
        objective,
        hessian=np.zeros_like(objective.hessian),
        cross=np.zeros_like(objective.cross),
        squares=0 * objective.squares,
        means=objective.means,
        outputs=objective.outputs,
        count=objective.count,
    )
    found = round_kernel(kernel, rows.grid.codes(kernel), rows, none, GptqConfig(refits=0))
    assert found.dead == 6
    assert np.array_equal(found.codes, rows.grid.codes(kernel))


def test_columns_that_are_multiples_of_each_other_need_the_damping_only() -> None:
    kernel, rows, objective = problem(6, 3, 3, 3)
    hessian, cross = objective.hessian.copy(), objective.cross.copy()
    hessian[0, 1], hessian[0, :, 1] = hessian[0, 0], hessian[0, :, 0]
    hessian[0, 1, 1] = hessian[0, 0, 0]
    cross[0, :, 1] = cross[0, :, 0]
    singular = replace(objective, hessian=hessian, cross=cross)
    assert np.linalg.matrix_rank(hessian[0]) == 5
    found = round_kernel(kernel, rows.grid.codes(kernel), rows, singular, GptqConfig())
    assert np.isfinite(found.grid.scale).all()
