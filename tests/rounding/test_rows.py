"""Rows of kernels: there and back, and the step that each of their elements has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import detent
from detent.kernels.rounding import AffineColumns, CodebookColumns
from detent.records.grid import Grid
from detent.rounding import KernelRows

CASES = {
    "conv": (nn.Conv2d(4, 6, 3), (2, 4, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    "conv1d": (nn.Conv1d(4, 6, 3), (2, 4, 8)),
    "linear": (nn.Linear(8, 6), (2, 8)),
}


def layer_of(name: str) -> tuple[detent.Graph, KernelRows, np.ndarray]:
    module, shape = CASES[name]
    graph = detent.capture(nn.Sequential(module).eval(), torch.zeros(shape))
    (node,) = (node for node in graph.nodes() if node.weight is not None)
    assert node.weight is not None
    kernel = graph.tensor(node.weight).detach().numpy()
    axis = 1 if name == "transposed" else 0
    grid = symmetric(axis, kernel.shape[axis])
    return graph, KernelRows(layer=node, shape=kernel.shape, grid=grid), kernel


def symmetric(axis: int | None, size: int, group_size: int | None = None) -> Grid:
    threshold = np.linspace(1, 2, size).astype(np.float32)
    return Grid(kind="symmetric", bits=4, signed=True, threshold=threshold, axis=axis, group_size=group_size)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str) -> None:
    _, rows, kernel = layer_of(name)
    assert np.array_equal(rows.back(rows.of(kernel)), kernel)


def spread(grids: AffineColumns | CodebookColumns, shape: tuple[int, ...]) -> np.ndarray:
    """The step of each element of a group's rows."""
    scale = np.asarray(grids.scale)
    columns = np.zeros(shape[1], int) if grids.group_of_column is None else np.asarray(grids.group_of_column)
    return np.broadcast_to(scale[:, columns], shape)


@pytest.mark.parametrize("name", CASES)
def test_each_element_has_the_step_that_its_grid_gives_it(name: str) -> None:
    _, rows, kernel = layer_of(name)
    per_group = 2 if kernel.shape[1] % 2 == 0 and name != "transposed" else 1
    axis = rows.grid.axis
    sizes = [kernel.shape[axis or 0], kernel.shape[axis or 0] * kernel.shape[1] // per_group]
    for grid in (symmetric(None, 1), symmetric(axis, sizes[0]), symmetric(0, sizes[1], per_group)):
        if grid.group_size is not None and name == "transposed":
            continue
        found = KernelRows(layer=rows.layer, shape=kernel.shape, grid=grid)
        shape = found.of(kernel).shape
        steps = np.stack([spread(grids, shape[1:]) for grids in found.grids()])
        # What rounds to a hundred steps on a grid without limits tells the step.
        wide = Grid(**{**grid.to_dict(), "bits": 16, "threshold": grid.scale * 2**15})
        assert np.array_equal(found.back(np.ascontiguousarray(steps)), wide.values(np.ones(kernel.shape, np.int16)))


def test_codebooks_go_with_their_channels() -> None:
    _, rows, kernel = layer_of("conv")
    tables = np.sort(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), axis=1)
    threshold = np.linspace(1, 2, 6).astype(np.float32)
    grid = Grid(kind="lut", bits=2, signed=True, threshold=threshold, table=tables, axis=0)
    (found,) = KernelRows(layer=rows.layer, shape=kernel.shape, grid=grid).grids()
    assert isinstance(found, CodebookColumns)
    assert np.array_equal(found.table, tables)
    assert np.array_equal(np.asarray(found.scale)[:, 0], grid.scale)
