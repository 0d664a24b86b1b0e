"""Room for biases: a 32-bit bias at step (input step) x (kernel step) must not overflow.

A channel whose weights are nearly zero gets a tiny step, and its bias then needs more than 32 bits. Raising that
channel's threshold costs nothing measurable, since its weights hardly matter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from detent.graph import Graph
from detent.graph.channelwise import steps_of_outputs
from detent.graph.placement import Placement
from detent.records.grid import Grid
from detent.records.plan import TensorPlan, grid_of

__all__ = ["make_room_for_biases"]

_LARGEST_CODE = 2.0**30
"""Codes stay below half of the 32-bit range, so that the accumulator has room for the products too."""


def make_room_for_biases(
    graph: Graph,
    placement: Placement,
    activations: Mapping[str, TensorPlan],
    weights: Mapping[str, TensorPlan],
    pinned: Collection[str] = (),
) -> tuple[dict[str, TensorPlan], list[str]]:
    """Raise kernel thresholds where a bias would not fit; returns the entries and a note for each raised kernel.

    Kernels of the layers in `pinned` stay as they are.
    """
    roomy, notes = dict(weights), []
    for layer, point in placement.weights.items():
        grid = weights[layer].grid
        if weights[layer].bias_bits is None or grid is None or layer in pinned:
            continue
        least = np.zeros(grid.size)
        for user, source in zip(point.users, point.inputs, strict=True):
            bias, input_grid = graph.find(user).bias, None if source is None else grid_of(activations, source)
            if bias is None or input_grid is None:
                continue
            size = np.abs(graph.tensor(bias).detach().double().cpu().numpy())
            needed = size / (steps_of_outputs(input_grid.scale, len(size)).astype(np.float64) * _LARGEST_CODE)
            # One step may serve several entries: all of them, or those at its place in every group of channels.
            least = np.maximum(least, needed.reshape(-1, grid.size).max(axis=0))
        raised = grid.scale < least
        if bool(raised.any()):
            roomy[layer] = replace(weights[layer], grid=_with_least_step(grid, least), error=None)
            notes.append(f"{layer}: raised the thresholds of {int(raised.sum())} channels so that biases fit 32 bits")
    return roomy, notes


def _with_least_step(grid: Grid, least: np.ndarray) -> Grid:
    # The next power of two keeps power-of-two grids valid and every quotient exact.
    factor = np.exp2(np.ceil(np.log2(np.maximum(least / grid.scale, 1.0)))).astype(np.float32)
    if grid.threshold is not None:
        return replace(grid, threshold=grid.threshold * factor)
    assert grid.lower is not None
    assert grid.upper is not None
    half = least.astype(np.float32) * (1 << (grid.bits - 1))
    return replace(grid, lower=np.minimum(grid.lower, -half), upper=np.maximum(grid.upper, half))
