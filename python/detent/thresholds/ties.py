"""Steps without ties: no accumulator of a layer lands halfway between two codes of its output.

A layer's accumulator a is a whole number, and its output code is a * M rounded, with M = (input step) x (kernel step) /
(output step). Where a * M is near k + 1/2, the code depends on the last bit of the arithmetic: runtimes that add in
another order, or round ties another way, disagree by one code there, and the difference spreads. Such accumulators are
not rare in a network with millions of them, so two correct runtimes hardly ever agree on every output.

If M = p / q with q odd, a * M is k + 1/2 for no a, since 2 a p is even and q (2k + 1) is odd; the nearest value is
1 / (2q) away. The kernel step is moved by at most one part in 4096 to such an M, and every accumulator is then 8e-5
output steps or more from a tie (for M of 1 / 2048 or more): far more than the float error of a sum. For these layers,
what PyTorch computes is what onnxruntime computes, and what an integer runtime computes however it rounds ties.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import fx

from detent.graph import Graph, GraphNode
from detent.graph.channelwise import steps_of_outputs
from detent.graph.placement import Placement, WeightPoint
from detent.records.grid import LUT_STEPS, Grid
from detent.records.plan import TensorPlan, grid_of

__all__ = ["avoid_ties", "tie_free"]

_RELATIVE: Final = 2.0**-12
"""Largest relative change of a kernel step."""
_LARGEST_NUMERATOR: Final = 16
"""Small fractions tried before the one that is always close enough."""
_LINEAR: Final = frozenset({"relu", "relu6", "hardtanh", "clamp_min", "clamp_max"})
"""Activations that hand the accumulator on or clamp it."""

Vector = npt.NDArray[np.float64]


def avoid_ties(
    graph: Graph,
    placement: Placement,
    activations: Mapping[str, TensorPlan],
    weights: Mapping[str, TensorPlan],
    pinned: Collection[str] = (),
) -> dict[str, TensorPlan]:
    """The kernel entries with thresholds moved to tie-free steps, where input, kernel and output all have a grid.

    Symmetric kernels and codebooks only: powers of two multiply exactly, and their rare ties are ties everywhere. A
    kernel with several users is moved for the first. Kernels of the layers in `pinned` stay as they are.
    """
    users = {node.node: node for node in graph.nodes()}
    moved = dict(weights)
    for layer, point in placement.weights.items():
        grid = weights[layer].grid
        if grid is None or not _movable(grid) or layer in pinned:
            continue
        source, output = point.inputs[0], _output(graph, point, placement, users)
        before, after = (None if name is None else grid_of(activations, name) for name in (source, output))
        if before is None or after is None:
            continue
        ratio = _ratio(graph.find(point.users[0]), before, after)
        if len(ratio) not in (1, grid.size):  # one kernel step cannot suit several channels
            continue
        moved[layer] = replace(
            weights[layer], grid=_with_steps(grid, tie_free(grid.scale * ratio.astype(np.float32)) / ratio)
        )
    return moved


def tie_free(multiplier: npt.ArrayLike) -> Vector:
    """The nearest p / q with odd q and small p, at most one part in 4096 away.

    Args:
        multiplier: positive numbers `[n]`.
    """
    wanted = np.asarray(multiplier, np.float64)
    # q next to p / M is odd and at most 1 away, so p / q is within M / p of M, relatively.
    sure = np.maximum(1.0, np.ceil(wanted / _RELATIVE))
    found = sure / _nearest_odd(sure / wanted)
    open_ = np.ones(wanted.shape, bool)
    for p in range(1, _LARGEST_NUMERATOR + 1):
        candidate = p / _nearest_odd(p / wanted)
        good = open_ & (np.abs(candidate - wanted) <= _RELATIVE * wanted)
        found = np.where(good, candidate, found)
        open_ &= ~good
    return np.asarray(found)


def _nearest_odd(x: Vector) -> Vector:
    return np.asarray(2.0 * np.floor(x / 2.0) + 1.0)


def _output(graph: Graph, point: WeightPoint, placement: Placement, nodes: Mapping[fx.Node, GraphNode]) -> str | None:
    """The value that carries the layer's accumulator to codes: its own output, or that of a clamp fused with it."""
    node = graph.find(point.users[0])
    while node.name not in placement.activations:
        users = list(node.node.users)
        follower = nodes.get(users[0]) if len(users) == 1 else None
        if follower is None or follower.op is None or not (follower.op.name in _LINEAR or follower.preserving):
            return None
        node = follower
    return node.name


def _ratio(layer: GraphNode, before: Grid, after: Grid) -> Vector:
    """Input step over output step: one number, or one for each output channel where either is per channel."""
    inputs = before.scale
    if len(inputs) > 1:
        assert layer.shape is not None
        assert layer.channel_axis is not None
        inputs = steps_of_outputs(inputs, layer.shape[layer.channel_axis])
    return np.asarray(inputs.astype(np.float64) / after.scale.astype(np.float64))


def _movable(grid: Grid) -> bool:
    """Whether the thresholds may be any number, and each channel has one step."""
    return grid.threshold is not None and grid.has_bias_step and not grid.keeps_powers_of_two


def _with_steps(grid: Grid, steps: Vector) -> Grid:
    assert grid.threshold is not None
    # A whole power of two apart, so the step of the new threshold is the rounded step itself.
    levels = np.float32(LUT_STEPS if grid.kind == "lut" else 1 << (grid.bits - grid.signed))
    return replace(grid, threshold=steps.astype(np.float32) * levels)
